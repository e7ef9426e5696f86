#include "attention_plan.h"

#include <utility>

#include "kernels/workspace.h"

namespace onnxpress {
namespace {

struct Indices {
  std::size_t inputs[kAttentionInputs];
  std::size_t outputs[kAttentionOutputs];
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
    Aligned<std::uint8_t> unread[kAttentionOutputs];  // outputs that nothing asks for
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
                Aligned<std::uint8_t> (&unread)[kAttentionOutputs]) const {
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
    for (std::size_t i = 0; i < node.outputs(); ++i) outputs_[i] = node.output(i).name();
  }

  std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const override {
    Indices indices{};
    for (std::size_t i = 0; i < kAttentionInputs; ++i) {
      const std::string& name = sources_.inputs[i];
      indices.inputs[i] = name.empty() ? kNoInput : input_index(api_, compiled, name);
    }
    for (std::size_t i = 0; i < kAttentionOutputs; ++i) {
      indices.outputs[i] = outputs_[i].empty() ? kNoInput : output_index(api_, compiled, outputs_[i]);
    }
    return std::make_unique<CompiledAttention>(api_, node_, indices, isa_);
  }

 private:
  const ort::Api& api_;
  const Isa isa_;
  const AttentionNode node_;
  const AttentionSources sources_;
  std::string outputs_[kAttentionOutputs];
};

}  // namespace

std::unique_ptr<Plan> plan_attention(const Claims& claims, const GraphNode& node, AttentionNode read,
                                     AttentionSources sources) {
  return std::make_unique<AttentionPlan>(claims, node, std::move(read), std::move(sources));
}

bool is_attention_faster(const Plan&, Isa isa) { return is_attention_vectorized(isa); }

}  // namespace onnxpress
