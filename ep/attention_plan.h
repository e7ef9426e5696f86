// An attention compiled and run, whatever node it comes from.
#pragma once

#include <memory>

#include "attention_sources.h"
#include "plan.h"

namespace onnxpress {

inline constexpr std::size_t kAttentionOutputs = 3;  // the result, and where they are kept the keys and the values

std::unique_ptr<Plan> plan_attention(const Claims& claims, const GraphNode& node, AttentionNode read,
                                     AttentionSources sources);

bool is_attention_faster(const Plan& plan, Isa isa);

}  // namespace onnxpress
