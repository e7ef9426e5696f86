#include "cached_attention.h"

#include <cmath>
#include <string>
#include <utility>

#include "attention_sources.h"
#include "cached_attention_inputs.h"
#include "kernels/workspace.h"

namespace onnxpress {
namespace {

constexpr std::size_t kOutputs = 3;  // the result, the keys and the values

struct Indices {
  std::size_t inputs[kAttentionInputs];
  std::size_t outputs[kOutputs];
};

class CompiledAttention final : public CompiledNode {
 public:
  CompiledAttention(const ort::Api& api, AttentionNode node, const Indices& indices, Isa isa)
      : CompiledNode(api), node_(std::move(node)), indices_(indices), isa_(isa) {}

  void run(ort::KernelContext* context) const override {
    const ort::Value* values[kAttentionInputs] = {};
    for (std::size_t i = 0; i < kAttentionInputs; ++i) {
      if (indices_.inputs[i] != kNoInput) values[i] = input(context, indices_.inputs[i]);
    }
    AttentionInputs inputs(api_, node_, values);
    CachedAttention& a = inputs.problem;
    Aligned<std::uint8_t> unread[kOutputs];  // outputs that nothing asks for
    a.output = output(context, 0, {a.batch, a.tokens, a.heads * a.head_size}, unread);
    const std::vector<std::int64_t> present = {a.batch, a.kv_heads, a.present_size, a.head_size};
    a.present_key = output(context, 1, present, unread);
    a.present_value = output(context, 2, present, unread);
    const bool shares = a.past_key != nullptr && (a.past_key == a.present_key || a.past_value == a.present_value);
    if (shares && a.present_size != a.past_size) {
      throw ort::InvalidArgument(node_.label + ": past and present are the same memory, of " +
                                 std::to_string(a.past_size) + " tokens, which is full");
    }
    cached_attention(a, isa_, ort::IntraOpPool(api_, context));
  }

 private:
  float* output(ort::KernelContext* context, std::size_t index, const std::vector<std::int64_t>& shape,
                Aligned<std::uint8_t> (&unread)[kOutputs]) const {
    ort::Value* value = nullptr;
    if (indices_.outputs[index] != kNoInput) {
      ort::check(api_,
                 api_.KernelContext_GetOutput(context, indices_.outputs[index], shape.data(), shape.size(), &value));
    }
    if (value != nullptr) return static_cast<float*>(const_cast<void*>(ort::data(api_, value)));
    std::int64_t count = 1;
    for (std::int64_t size : shape) count *= size;
    unread[index] = make_workspace(static_cast<std::size_t>(count) * sizeof(float));
    return reinterpret_cast<float*>(unread[index].get());
  }

  const AttentionNode node_;
  const Indices indices_;
  const Isa isa_;
};

class AttentionPlan final : public Plan {
 public:
  AttentionPlan(const Claims& claims, const GraphNode& node, AttentionNode read, AttentionSources sources)
      : api_(claims.api), isa_(claims.options.isa), node_(std::move(read)), sources_(std::move(sources)) {
    nodes = sources_.nodes;
    nodes.push_back(node.get());
    drops_constants = false;  // tables of angles are read where they lie
    for (std::size_t i = 0; i < kOutputs; ++i) outputs_[i] = node.output(i).name();
  }

  std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const override {
    Indices indices{};
    for (std::size_t i = 0; i < kAttentionInputs; ++i) {
      const std::string& name = sources_.inputs[i];
      indices.inputs[i] = name.empty() ? kNoInput : input_index(api_, compiled, name);
    }
    for (std::size_t i = 0; i < kOutputs; ++i) indices.outputs[i] = output_index(api_, compiled, outputs_[i]);
    return std::make_unique<CompiledAttention>(api_, node_, indices, isa_);
  }

 private:
  const ort::Api& api_;
  const Isa isa_;
  const AttentionNode node_;
  const AttentionSources sources_;
  std::string outputs_[kOutputs];
};

std::int64_t required(const GraphNode& node, const char* name) {
  const std::int64_t value = node.attribute(name, 0);
  if (value < 1) node.reject(std::string("attribute ") + name + " is missing or below 1");
  return value;
}

void check_inputs(const GraphNode& node) {
  for (std::size_t i = kAttentionInputs; i < node.inputs(); ++i) {
    if (node.input(i)) node.reject("input " + std::to_string(i) + " is not supported");
  }
  if (node.outputs() != kOutputs) node.reject("it has not three outputs");
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
  AttentionSources sources = find_sources(claims, node, read);
  return std::make_unique<AttentionPlan>(claims, node, std::move(read), std::move(sources));
}

bool is_cached_attention_faster(const Plan&, Isa isa) { return is_attention_vectorized(isa); }

}  // namespace onnxpress
