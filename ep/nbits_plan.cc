#include "nbits_plan.h"

#include <cstring>
#include <utility>

#include "activations.h"
#include "addend.h"
#include "nbits_verifier.h"
#include "shared_weights.h"

namespace onnxpress {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

// At which places of the compiled node its inputs come in.
struct Places {
  std::size_t a, bias, gate;
};

class CompiledNBits final : public CompiledNode {
 public:
  CompiledNBits(const ort::Api& api, NBitsProduct product, PackedWeight weight, std::vector<std::uint8_t> constant_bias,
                Activation activation, Places places, std::unique_ptr<NBitsVerifier> verifier)
      : CompiledNode(api),
        product_(std::move(product)),
        weight_(std::move(weight)),
        constant_bias_(std::move(constant_bias)),
        activation_(activation),
        places_(places),
        verifier_(std::move(verifier)) {}

  void run(ort::KernelContext* context) const override {
    const ort::IntraOpPool pool(api_, context);
    NBitsEpilogue epilogue{constant_bias_.empty() ? nullptr : constant_bias_.data(), activation_};
    if (places_.bias != kNone) epilogue.bias = product_.bias(input(context, places_.bias));
    if (places_.gate != kNone) epilogue.gate = input(context, places_.gate);
    const ort::Value* a = input(context, places_.a);
    const NBitsOutput y = product_.compute(context, a, weight_.view, epilogue, pool);
    if (verifier_ != nullptr) verifier_->check(ort::data(api_, a), y.M, epilogue, y.values);
  }

 private:
  const NBitsProduct product_;
  const PackedWeight weight_;
  const std::vector<std::uint8_t> constant_bias_;
  const Activation activation_;
  const Places places_;
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
  take_activation(claims, take_bias(claims, node.output()));
}

GraphValue NBitsPlan::take_bias(const Claims& claims, const GraphValue& product) {
  if (constant_bias_ != nullptr || !bias_.empty()) return product;
  const std::optional<Addend> addend = find_addend(claims, product);
  const ort::Value* constant = addend ? addend->value.constant() : nullptr;
  // A constant of one axis cannot broadcast the product.
  if (constant == nullptr || !product_.is_bias(ort::type_and_shape(api_, constant))) return product;
  constant_bias_ = constant;
  nodes.push_back(addend->add);
  return GraphNode(api_, addend->add).output();
}

void NBitsPlan::take_activation(const Claims& claims, const GraphValue& value) {
  // In float16 the nodes round the sum before its activation, and that before the gate.
  if (product_.activation() != ort::kFloat) return;
  const std::optional<FoundActivation> found = find_activation(claims, value);
  if (!found) return;
  activation_ = found->activation;
  nodes.insert(nodes.end(), found->nodes.begin(), found->nodes.end());
  const std::optional<FoundGate> gate = find_gate(claims, found->last.output(), a_);
  if (!gate) return;
  gate_ = gate->factor.name();
  nodes.push_back(gate->node);
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
  const auto place = [&](const std::string& name) { return name.empty() ? kNone : place_of(api_, compiled, name); };
  return std::make_unique<CompiledNBits>(api_, product_, std::move(weight), std::move(constant_bias), activation_,
                                         Places{place(a_), place(bias_), place(gate_)}, std::move(verifier));
}

}  // namespace onnxpress
