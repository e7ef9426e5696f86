// MultiHeadAttention of com.microsoft in float32, without a past.
#pragma once

#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_multi_head_attention(const Claims& claims, const ort::Node* node);

}  // namespace onnxpress
