#include "multi_head_attention.h"

#include <cmath>
#include <string>
#include <utility>

#include "attention_plan.h"

namespace onnxpress {
namespace {

// Inputs behind queries, keys and values.
enum Place : std::size_t { kProjectionBias = 3, kPaddingMask, kAttentionBias };

constexpr float kFilterValue = -10000;  // what ONNX Runtime adds to scores of padding by default

std::int64_t columns_of(const GraphNode& node, std::size_t place, const char* name) {
  const ValueType type = node.required(place, name).type();
  if (type.element != ort::kFloat) node.reject(std::string(name) + " is not float32");
  if (type.dims.size() != 3 || type.dims[2].size < 1)
    node.reject(std::string(name) + " is not known to have three axes");
  return type.dims[2].size;
}

void check_inputs(const GraphNode& node) {
  if (node.outputs() != 1) node.reject("it has more than one output");
  for (std::size_t i = kProjectionBias; i < node.inputs(); ++i) {
    if (node.input(i) && i != kPaddingMask && i != kAttentionBias) {
      node.reject("input " + std::to_string(i) + " is not supported");
    }
  }
  const std::optional<GraphValue> mask = node.input(kPaddingMask), bias = node.input(kAttentionBias);
  if (mask && bias) node.reject("it has both a mask and a bias");
  if (mask && (mask->type().element != ort::kInt32 || mask->type().dims.size() != 2)) {
    node.reject("its mask is not known to be int32 [batch, keys]");
  }
  if (bias && bias->type().element != ort::kFloat) node.reject("its bias is not float32");
}

AttentionNode read_node(const GraphNode& node) {
  check_inputs(node);
  AttentionNode read;
  read.label = node.label();
  read.is_cached = false;
  read.causal = node.attribute("unidirectional", 0) == 1;
  read.heads = read.kv_heads = node.attribute("num_heads", 0);
  if (read.heads < 1) node.reject("attribute num_heads is missing or below 1");
  const std::int64_t columns = columns_of(node, kQuery, "query");
  if (columns_of(node, kKey, "key") != columns || columns_of(node, kValue, "value") != columns ||
      columns % read.heads != 0) {
    node.reject("query, key and value differ in heads or width");
  }
  read.head_size = columns / read.heads;
  if (read.head_size > kMaxHeadSize) node.reject("heads of more than " + std::to_string(kMaxHeadSize) + " numbers");
  const float scale = node.float_attribute("scale", 0);
  read.scale = scale != 0 ? scale : 1 / std::sqrt(static_cast<float>(read.head_size));
  read.filter_value = node.float_attribute("mask_filter_value", kFilterValue);
  return read;
}

}  // namespace

std::unique_ptr<Plan> plan_multi_head_attention(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  if (!node.is("com.microsoft", "MultiHeadAttention")) return nullptr;
  AttentionNode read = read_node(node);
  AttentionSources sources;
  const auto name = [&](std::size_t place) {
    const std::optional<GraphValue> value = node.input(place);
    return value ? value->name() : std::string();
  };
  for (std::size_t i : {kQuery, kKey, kValue}) sources.inputs[i] = name(i);
  sources.inputs[kKeyMask] = name(kPaddingMask);
  sources.inputs[kBias] = name(kAttentionBias);
  look_ahead(claims, node, read, sources);
  const bool is_more = read.rotates || read.kv_heads < read.heads || !sources.inputs[kQueryNorm].empty() ||
                       !sources.inputs[kKeyNorm].empty();
  std::unique_ptr<Plan> plan = plan_attention(claims, node, std::move(read), std::move(sources));
  plan->has_rival = !is_more;
  return plan;
}

bool is_multi_head_attention_faster(const Plan& plan, Isa isa) {
  return !plan.has_rival && is_attention_faster(plan, isa);
}

}  // namespace onnxpress
