// GroupQueryAttention of com.microsoft in float32.
#pragma once

#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_cached_attention(const Claims& claims, const ort::Node* node);

}  // namespace onnxpress
