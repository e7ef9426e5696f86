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
  // Heads repeated for groups, RotaryEmbedding of queries and keys, norms of their heads, and a Split of all three.
  std::vector<const ort::Node*> nodes;
};

// Adds the nodes before a node whose first inputs are queries, keys and values, and says in `read` what they do.
void look_ahead(const Claims& claims, const GraphNode& node, AttentionNode& read, AttentionSources& found);

}  // namespace onnxpress
