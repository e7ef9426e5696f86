// Products of activations that are rounded to 8 bits at run time: what MatMulInteger computes, scaled back to float32.
#pragma once

#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_dynamic_matmul(const Claims& claims, const ort::Node* node);

}  // namespace onnxpress
