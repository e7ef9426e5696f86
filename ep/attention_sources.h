// Where an attention's queries, keys and values come from: nodes before it that it can run too.
#pragma once

#include <string>
#include <vector>

#include "cached_attention_inputs.h"
#include "graph.h"
#include "plan.h"

namespace onnxpress {

struct AttentionSources {
  std::string inputs[kAttentionInputs];  // names of values, empty where absent
  std::vector<const ort::Node*> nodes;   // RotaryEmbedding of queries and keys, and a Split of all three
};

// Says in `read` what RotaryEmbedding nodes do.
AttentionSources find_sources(const Claims& claims, const GraphNode& node, AttentionNode& read);

}  // namespace onnxpress
