// MatMulNBits nodes of com.microsoft and of our own domain.
#pragma once

#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_matmul_nbits(const Claims& claims, const ort::Node* node);

}  // namespace onnxpress
