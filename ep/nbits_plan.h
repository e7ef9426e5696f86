// A product with a weight of a few bits, whatever nodes it comes from.
#pragma once

#include <memory>
#include <string>

#include "activations.h"
#include "graph.h"
#include "ops/nbits_product.h"
#include "plan.h"

namespace onnxpress {

class NBitsPlan : public Plan {
 public:
  // `a` names the input.
  NBitsPlan(const Claims& claims, NBitsProduct product, const NBitsSource& weight, std::string a);

  void set_bias(const ort::Value* constant);
  // Input `index` of the node, if it has one.
  void set_bias(const GraphNode& node, std::size_t index);

  // Takes what is around the product, which `node` computes: the norm before it; behind it a bias that an Add brings,
  // an activation and a gate or a gated linear unit, or else what is added.
  void extend(const Claims& claims, const GraphNode& node);

  std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const override;

 private:
  // The value once the bias is added.
  GraphValue take_bias(const Claims& claims, const GraphValue& product);
  void take_norm(const Claims& claims, const GraphNode& node);
  void take_activation(const Claims& claims, const FoundActivation& found);

  const ort::Api& api_;
  const Options& options_;
  const ort::Logger* logger_;
  NBitsProduct product_;
  NBitsSource weight_;
  std::string a_, bias_, gate_, addend_;
  const ort::Value* constant_bias_ = nullptr;
  const ort::Value* norm_scale_ = nullptr;
  float norm_epsilon_ = 0;
  Activation activation_ = Activation::kNone;
  Glu glu_ = Glu::kNone;
};

bool is_nbits_faster(const Plan& plan, Isa isa);

std::unique_ptr<CompiledNode> load_nbits(SavedNode& saved);

}  // namespace onnxpress
