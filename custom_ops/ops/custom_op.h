// What custom ops with the product of A as their only output have in common.
#pragma once

#include <optional>
#include <string>

#include "ort/abi.h"

namespace onnxpress {

// What messages about a node begin with.
std::string label_of(const ort::Api& api, const ort::KernelInfo* info, const char* op);

// Shape of the output: that of A with the last size replaced by the attribute N. Names of symbolic sizes survive. Its
// type is that of A where none is given.
void infer_shape(const ort::Api& api, ort::ShapeInferContext* context, std::optional<ort::ElementType> type);

// All but names, types, characteristics of inputs and what runs.
void set_common(ort::CustomOp& op);

}  // namespace onnxpress
