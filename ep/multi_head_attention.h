// MultiHeadAttention of com.microsoft in float32, without a past.
#pragma once

#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_multi_head_attention(const Claims& claims, const ort::Node* node);

// ONNX Runtime's node alone is as fast or faster; what it needs beside it for rotations, norms of heads and heads that
// groups share is not.
bool is_multi_head_attention_faster(const Plan& plan, Isa isa);

}  // namespace onnxpress
