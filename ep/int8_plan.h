// A product of 8-bit activations with an 8-bit weight, whatever nodes it comes from.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graph.h"
#include "kernels/matmul_int8.h"
#include "plan.h"

namespace onnxpress {

// The constants of a weight [K, N], stored as [N, K] if `transposed`; scales and zero points may be null.
struct Int8Constants {
  const ort::Value* codes;
  const ort::Value* scales;
  const ort::Value* zero_points;
  bool transposed = false;
};

// Throws InvalidArgument, as the node's, where they are not of 8 bits with a scale and a zero point for all or a
// column.
Int8Source read_int8_weight(const ort::Api& api, const GraphNode& node, const Int8Constants& constants);

// The activations: float32 that is rounded on the way, or codes.
struct Int8Input {
  GraphValue a;
  Int8Format format{};                              // what is constant of it
  bool is_dynamic = false;                          // as DynamicQuantizeLinear chooses it, for float32
  std::optional<GraphValue> scale{}, zero_point{};  // those that come in at run time, for codes

  bool is_float() const { return a.type().element == ort::kFloat; }
};

class Int8Plan : public Plan {
 public:
  // `node` computes the product. Throws InvalidArgument where something else must do it.
  Int8Plan(const Claims& claims, const GraphNode& node, const Int8Input& input, const Int8Source& weight);

  void set_bias(std::vector<float> bias) { bias_ = std::move(bias); }
  bool has_bias() const { return !bias_.empty(); }
  // Takes a bias that a following Add brings; the value that is computed then.
  GraphValue take_bias(const Claims& claims, const GraphValue& product);
  // Codes of this format come out, instead of float32.
  void set_output(const Int8Format& output) { output_ = output; }

  std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const override;

 private:
  const ort::Api& api_;
  const Options& options_;
  const ort::Logger* logger_;
  const std::string label_;
  const Int8Input input_;
  const Int8Source weight_;
  std::vector<float> bias_;
  std::optional<Int8Format> output_;
};

class SavedNode;
std::unique_ptr<CompiledNode> load_int8(SavedNode& saved);

bool is_int8_faster(const Plan& plan, Isa isa);

}  // namespace onnxpress
