// A product with a weight of a few bits, whatever nodes it comes from.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "graph.h"
#include "ops/nbits_product.h"
#include "plan.h"

namespace onnxpress {

// A weight as MatMulNBits stores it, and the buffers that it was converted into, if any.
struct StoredWeight {
  NBitsSource source;
  std::vector<std::uint8_t> codes, zero_points;
  std::vector<std::uint8_t> scales;
};

class NBitsPlan : public Plan {
 public:
  // `store` is called when the node is compiled; `a` names the input.
  NBitsPlan(const Claims& claims, NBitsProduct product, std::function<StoredWeight()> store, std::string a);

  // One of the two.
  void set_bias(const ort::Value* constant);
  void set_bias(std::string input) { bias_ = std::move(input); }

  // Takes a bias that a following Add brings; `node` computes the product.
  void extend(const Claims& claims, const GraphNode& node);

  std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const override;

 private:
  const ort::Api& api_;
  const Options& options_;
  const ort::Logger* logger_;
  NBitsProduct product_;
  std::function<StoredWeight()> store_;
  std::string a_, bias_;
  const ort::Value* constant_bias_ = nullptr;
};

}  // namespace onnxpress
