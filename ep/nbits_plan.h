// A product with a weight of a few bits, whatever nodes it comes from.
#pragma once

#include <memory>
#include <string>

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

  // Takes what follows the product, which `node` computes: a bias that an Add brings, an activation, and a gate.
  void extend(const Claims& claims, const GraphNode& node);

  std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const override;

 private:
  // What is computed once the bias is added.
  GraphValue take_bias(const Claims& claims, const GraphValue& product);
  void take_activation(const Claims& claims, const GraphValue& value);

  const ort::Api& api_;
  const Options& options_;
  const ort::Logger* logger_;
  NBitsProduct product_;
  NBitsSource weight_;
  std::string a_, bias_, gate_;
  const ort::Value* constant_bias_ = nullptr;
  Activation activation_ = Activation::kNone;
};

bool is_nbits_faster(const Plan& plan, Isa isa);

std::unique_ptr<CompiledNode> load_nbits(SavedNode& saved);

}  // namespace onnxpress
