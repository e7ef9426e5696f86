// DequantizeLinear of a constant weight of 4 or 8 bits, then MatMul or Gemm.
#pragma once

#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_dequantized_matmul(const Claims& claims, const ort::Node* node);

}  // namespace onnxpress
