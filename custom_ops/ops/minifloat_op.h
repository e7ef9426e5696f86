// onnxpress::MatMulMiniFloat(A, B, scales, bias?) as a custom op: see reference/minifloat.py for its meaning.
#pragma once

#include <vector>

#include "ort/abi.h"

namespace onnxpress {

// One op for each combination of types; they live as long as the process.
std::vector<const ort::CustomOp*> minifloat_ops(const ort::Api& api, bool infers_shapes);

}  // namespace onnxpress
