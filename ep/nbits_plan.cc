#include "nbits_plan.h"

#include <cstring>
#include <utility>

#include "addend.h"
#include "nbits_verifier.h"
#include "shared_weights.h"

namespace onnxpress {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

class CompiledNBits final : public CompiledNode {
 public:
  CompiledNBits(const ort::Api& api, NBitsProduct product, PackedWeight weight, std::vector<std::uint8_t> constant_bias,
                std::size_t a_place, std::size_t bias_place, std::unique_ptr<NBitsVerifier> verifier)
      : CompiledNode(api),
        product_(std::move(product)),
        weight_(std::move(weight)),
        constant_bias_(std::move(constant_bias)),
        a_place_(a_place),
        bias_place_(bias_place),
        verifier_(std::move(verifier)) {}

  void run(ort::KernelContext* context) const override {
    const ort::IntraOpPool pool(api_, context);
    const void* bias = constant_bias_.empty() ? nullptr : constant_bias_.data();
    if (bias_place_ != kNone) bias = product_.bias(input(context, bias_place_));
    const ort::Value* a = input(context, a_place_);
    const NBitsOutput y = product_.compute(context, a, weight_.view, bias, pool);
    if (verifier_ != nullptr) verifier_->check(ort::data(api_, a), y.M, bias, y.values);
  }

 private:
  const NBitsProduct product_;
  const PackedWeight weight_;
  const std::vector<std::uint8_t> constant_bias_;
  const std::size_t a_place_, bias_place_;
  const std::unique_ptr<NBitsVerifier> verifier_;
};

}  // namespace

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
  if (constant_bias_ != nullptr || !bias_.empty()) return;
  const std::optional<Addend> addend = find_addend(claims, node.output());
  const ort::Value* constant = addend ? addend->value.constant() : nullptr;
  // A constant of one axis cannot broadcast the product.
  if (constant == nullptr || !product_.is_bias(ort::type_and_shape(api_, constant))) return;
  constant_bias_ = constant;
  nodes.push_back(addend->add);
}

std::unique_ptr<CompiledNode> NBitsPlan::compile(const ort::Node* compiled) const {
  std::vector<std::uint8_t> constant_bias;
  if (constant_bias_ != nullptr) {
    const auto* bytes = static_cast<const std::uint8_t*>(ort::data(api_, constant_bias_));
    constant_bias.assign(bytes, bytes + product_.bias_bytes());
  }
  PackedWeight weight = share(pack(weight_, Sequential()));
  std::unique_ptr<NBitsVerifier> verifier;
  if (options_.verify) verifier = std::make_unique<NBitsVerifier>(api_, logger_, product_, weight_);
  return std::make_unique<CompiledNBits>(api_, product_, std::move(weight), std::move(constant_bias),
                                         place_of(api_, compiled, a_),
                                         bias_.empty() ? kNone : place_of(api_, compiled, bias_), std::move(verifier));
}

}  // namespace onnxpress
