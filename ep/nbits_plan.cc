#include "nbits_plan.h"

#include <cstring>
#include <utility>

#include "context_nodes.h"
#include "nbits_verifier.h"
#include "shared_weights.h"

namespace onnxpress {
namespace {

class CompiledNBits final : public CompiledNode {
 public:
  CompiledNBits(const ort::Api& api, NBitsProduct product, PackedWeight weight, Blob constant_bias, std::size_t a_place,
                std::size_t bias_place, std::unique_ptr<NBitsVerifier> verifier)
      : CompiledNode(api),
        product_(std::move(product)),
        weight_(std::move(weight)),
        constant_bias_(std::move(constant_bias)),
        a_place_(a_place),
        bias_place_(bias_place),
        verifier_(std::move(verifier)) {}

  void run(ort::KernelContext* context) const override {
    const ort::IntraOpPool pool(api_, context);
    const void* bias = constant_bias_.size == 0 ? nullptr : constant_bias_.data();
    if (bias_place_ != kNowhere) bias = product_.bias(input(context, bias_place_));
    const ort::Value* a = input(context, a_place_);
    const NBitsOutput y = product_.compute(context, a, weight_.view, bias, pool);
    if (verifier_ != nullptr) verifier_->check(ort::data(api_, a), y.M, bias, y.values);
  }

  void save(ContextWriter& context) const override {
    const NBitsLayout& layout = weight_.layout;
    for (std::int64_t size : {layout.K, layout.N, layout.block_size}) context.number(size);
    context.number(layout.bits);
    context.number(static_cast<std::int64_t>(layout.scale_type));
    context.number(static_cast<std::int64_t>(layout.zero_points));
    context.blob(weight_.memory);
    context.text(product_.label());
    context.number(product_.activation());
    context.number(product_.accuracy_level());
    context.number(static_cast<std::int64_t>(a_place_));
    context.number(static_cast<std::int64_t>(bias_place_));
    context.blob(constant_bias_);
  }

 private:
  const NBitsProduct product_;
  const PackedWeight weight_;
  const Blob constant_bias_;
  const std::size_t a_place_, bias_place_;
  const std::unique_ptr<NBitsVerifier> verifier_;
};

PackedWeight load_weight(ContextReader& record) {
  using ZeroPoints = NBitsLayout::ZeroPoints;
  NBitsLayout layout;
  for (std::int64_t* size : {&layout.K, &layout.N, &layout.block_size}) *size = record.number();
  layout.bits = static_cast<int>(record.number(2, 8));
  layout.scale_type = static_cast<ScaleType>(record.number(0, static_cast<int>(ScaleType::kBFloat16)));
  layout.zero_points = static_cast<ZeroPoints>(record.number(0, static_cast<int>(ZeroPoints::kFloats)));
  if (!is_valid(layout)) record.reject("is damaged: it holds an impossible weight");
  Blob memory = record.blob();
  if (memory.size != packed_size(layout)) record.reject("is damaged: it holds a weight of the wrong size");
  const NBitsWeight weight = view(layout, memory.data());
  return {layout, std::move(memory), weight};
}

}  // namespace

std::unique_ptr<CompiledNode> load_nbits(SavedNode& saved) {
  ContextReader& record = saved.record;
  PackedWeight weight = load_weight(record);
  const std::string label = record.text();
  const auto activation = static_cast<ort::ElementType>(record.number());
  if (activation != ort::kFloat && activation != ort::kFloat16)
    record.reject("is damaged: activations of no known type");
  const std::int64_t level = saved.options.accuracy_level.value_or(record.number(0, 4));
  const NBitsLayout& layout = weight.layout;
  NBitsProduct product(saved.api, label, {layout.K, layout.N, layout.bits, layout.block_size, level},
                       {activation, activation, ort::kUint8}, saved.options.isa);
  const std::size_t a = saved.input(activation), bias = saved.input(activation);
  Blob constant_bias = record.blob();
  if (a == kNowhere || (constant_bias.size != 0 && constant_bias.size != product.bias_bytes())) {
    record.reject("is damaged: it holds an input of the wrong size");
  }
  saved.check_output(activation);
  std::unique_ptr<NBitsVerifier> verifier;
  if (saved.options.verify) verifier = std::make_unique<NBitsVerifier>(saved.api, saved.logger, product, weight.view);
  return std::make_unique<CompiledNBits>(saved.api, std::move(product), std::move(weight), std::move(constant_bias), a,
                                         bias, std::move(verifier));
}

NBitsPlan::NBitsPlan(const Claims& claims, NBitsProduct product, const NBitsSource& weight, std::string a)
    : api_(claims.api),
      options_(claims.options),
      logger_(claims.logger),
      product_(std::move(product)),
      weight_(weight),
      a_(std::move(a)) {}

void NBitsPlan::set_bias(const ort::Value* constant) {
  product_.bias(constant);  // checks it
  constant_bias_ = constant;
}

void NBitsPlan::extend(const Claims& claims, const GraphNode& node) {
  const ort::Node* reader = claims.graph.only_reader(node.output());
  if (reader == nullptr || constant_bias_ != nullptr || !bias_.empty() || !claims.is_free(reader)) return;
  const GraphNode add(api_, reader);
  if (!add.is("Add")) return;
  const std::string product = node.output().name();
  for (std::size_t i : {0u, 1u}) {
    const std::optional<GraphValue> value = add.input(i);
    if (!value || value->name() == product) continue;
    const ort::Value* constant = value->constant();
    // A constant of one axis cannot broadcast the product.
    if (constant == nullptr || !product_.is_bias(ort::type_and_shape(api_, constant))) return;
    constant_bias_ = constant;
    nodes.push_back(reader);
    return;
  }
}

std::unique_ptr<CompiledNode> NBitsPlan::compile(const ort::Node* compiled) const {
  Blob constant_bias;
  if (constant_bias_ != nullptr) constant_bias = copy(ort::data(api_, constant_bias_), product_.bias_bytes());
  PackedWeight weight = share(pack(weight_, Sequential()));
  std::unique_ptr<NBitsVerifier> verifier;
  if (options_.verify) verifier = std::make_unique<NBitsVerifier>(api_, logger_, product_, weight_);
  return std::make_unique<CompiledNBits>(
      api_, product_, std::move(weight), std::move(constant_bias), place_of(api_, compiled, a_),
      bias_.empty() ? kNowhere : place_of(api_, compiled, bias_), std::move(verifier));
}

}  // namespace onnxpress
