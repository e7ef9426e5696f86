// DequantizeLinear of 8-bit activations and of a constant 8-bit weight, then MatMul or Gemm, and QuantizeLinear.
#pragma once

#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_qdq_matmul(const Claims& claims, const ort::Node* node);

}  // namespace onnxpress
