// A MatMulNBits node of a graph, as the execution provider takes it.
#pragma once

#include <string>

#include "ops/nbits_product.h"
#include "ort/ep_abi.h"
#include "ort/ort.h"

namespace onnxpress {

struct NBitsNode {
  std::string label;  // what messages begin with
  NBitsAttributes attributes;
  NBitsTypes types{};
  // Constants of the graph, valid as long as it is. No zero points: null.
  const ort::Value* codes = nullptr;
  const ort::Value* scales = nullptr;
  const ort::Value* zero_points = nullptr;
  const ort::Value* constant_bias = nullptr;
  // Names of what comes in at run time. No such bias: empty.
  std::string a;
  std::string bias;
};

// Whether this is a node that `read_nbits_node` has a say on.
bool is_nbits_node(const ort::Api& api, const ort::Node* node);

// Reads and checks everything. Throws InvalidArgument, with the reason, where the node has to be left to others.
NBitsNode read_nbits_node(const ort::Api& api, const ort::Node* node);

// The node with its weight packed, to be released below. `fused` tells at which place each input comes in.
ort::NodeComputeInfo* compile_nbits_node(const ort::Api& api, const NBitsNode& node, const ort::Node* fused);
void release_nbits_node(ort::NodeComputeInfo* compiled);

}  // namespace onnxpress
