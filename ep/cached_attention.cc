#include "cached_attention.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "attention_plan.h"

namespace onnxpress {
namespace {

std::int64_t required(const GraphNode& node, const char* name) {
  const std::int64_t value = node.attribute(name, 0);
  if (value < 1) node.reject(std::string("attribute ") + name + " is missing or below 1");
  return value;
}

void check_inputs(const GraphNode& node) {
  for (std::size_t i = kNodeInputs; i < node.inputs(); ++i) {
    if (node.input(i)) node.reject("input " + std::to_string(i) + " is not supported");
  }
  if (node.outputs() != kAttentionOutputs) node.reject("it has not three outputs");
  for (const char* name : {"k_quant_type", "v_quant_type"}) {
    if (node.text_attribute(name, "NONE") != "NONE") node.reject(std::string(name) + " is not NONE");
  }
  if (node.attribute("kv_cache_bit_width", 0) != 0) node.reject("its cache is quantized");
  if (node.attribute("qk_output", 0) != 0) node.reject("its scores are asked for");
  if (node.required(kQuery, "query").type().element != ort::kFloat) node.reject("query is not float32");
  node.required(kLengths, "seqlens_k");
  node.required(kTotalLength, "total_sequence_length");
  if (node.input(kKey).has_value() != node.input(kValue).has_value()) node.reject("it has one of key and value");
  if (node.input(kPastKey).has_value() != node.input(kPastValue).has_value()) {
    node.reject("it has one of past_key and past_value");
  }
}

// Of the shapes that the graph states; -1 where they do not tell.
std::int64_t head_size_of(const GraphNode& node, const AttentionNode& read) {
  const auto last = [&](std::size_t input, std::size_t rank) -> std::int64_t {
    const std::optional<GraphValue> value = node.input(input);
    const ValueType type = value ? value->type() : ValueType();
    return type.dims.size() == rank ? type.dims.back().size : -1;
  };
  const std::int64_t of_past = last(kPastKey, 4), all = last(kQuery, 3);
  const std::int64_t heads = read.heads + (node.input(kKey) ? 0 : 2 * read.kv_heads);
  if (of_past >= 0) return of_past;
  return all >= 0 && all % heads == 0 ? all / heads : -1;
}

AttentionNode read_node(const GraphNode& node) {
  check_inputs(node);
  AttentionNode read;
  read.label = node.label();
  read.heads = required(node, "num_heads");
  read.kv_heads = required(node, "kv_num_heads");
  if (read.heads % read.kv_heads != 0) node.reject("num_heads is no multiple of kv_num_heads");
  read.head_size = head_size_of(node, read);
  if (read.head_size < 1 || read.head_size > kMaxHeadSize) {
    node.reject("the size of its heads is not known to be 1 to " + std::to_string(kMaxHeadSize));
  }
  const float scale = node.float_attribute("scale", 0);
  read.scale = scale != 0 ? scale : 1 / std::sqrt(static_cast<float>(read.head_size));
  read.softcap = node.float_attribute("softcap", 0);
  if (!(read.softcap >= 0)) node.reject("softcap is negative");
  read.window = std::max<std::int64_t>(node.attribute("local_window_size", -1), 0);
  read.rotates = node.attribute("do_rotary", 0) == 1;
  read.interleaved = node.attribute("rotary_interleaved", 0) == 1;
  if (read.rotates) {
    node.required(kCosines, "cos_cache");
    node.required(kSines, "sin_cache");
  }
  read.has_sink = node.attribute("smooth_softmax", 0) == 1 || node.input(kSinks).has_value();
  return read;
}

}  // namespace

std::unique_ptr<Plan> plan_cached_attention(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  if (!node.is("com.microsoft", "GroupQueryAttention")) return nullptr;
  AttentionNode read = read_node(node);
  AttentionSources sources;
  for (std::size_t i = 0; i < kNodeInputs; ++i) {
    if (const std::optional<GraphValue> value = node.input(i)) sources.inputs[i] = value->name();
  }
  if (node.input(kKey)) look_ahead(claims, node, read, sources);
  return plan_attention(claims, node, std::move(read), std::move(sources));
}

}  // namespace onnxpress
