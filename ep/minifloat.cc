#include "minifloat.h"

#include <string>
#include <utility>

#include "nbits_plan.h"

namespace onnxpress {
namespace {

enum Input : std::size_t { kA, kB, kScales, kBias };

NBitsAttributes read_attributes(const GraphNode& node, const Options& options) {
  const auto required = [&](const char* name) {
    const std::optional<std::int64_t> value = node.attribute(name);
    if (!value) node.reject(std::string("attribute ") + name + " is missing");
    return *value;
  };
  NBitsAttributes attributes =
      minifloat_attributes(node.label(), node.text_attribute("format", ""), required("K"), required("N"),
                           node.attribute("block_size", 0), node.attribute("accuracy_level", 0));
  attributes.accuracy_level = minifloat_level(options, attributes.accuracy_level);
  return attributes;
}

NBitsTypes read_types(const GraphNode& node) {
  const NBitsTypes types{node.required(kA, "A").type().element, node.required(kScales, "scales").type().element,
                         ort::kUint8};
  if (types.activation != ort::kFloat && types.activation != ort::kFloat16) {
    node.reject("input A is neither float32 nor float16");
  }
  if (types.scale != ort::kFloat && types.scale != ort::kFloat16 && types.scale != ort::kBFloat16 &&
      types.scale != ort::kUint8) {
    node.reject("scales are neither float32, float16, bfloat16 nor uint8 exponents");
  }
  if (node.required(kB, "B").type().element != ort::kUint8) node.reject("input B is not uint8");
  if (node.input(kBias) && node.input(kBias)->type().element != types.activation) {
    node.reject("bias is not of the type of A");
  }
  return types;
}

}  // namespace

std::int64_t minifloat_level(const Options& options, std::int64_t otherwise) {
  const std::int64_t asked = options.accuracy_level.value_or(otherwise);
  return asked == 4 ? otherwise : asked;
}

std::unique_ptr<Plan> plan_minifloat(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  if (!node.is("onnxpress", "MatMulMiniFloat")) return nullptr;
  NBitsProduct product(claims.api, node.label(), read_attributes(node, claims.options), read_types(node),
                       claims.options.isa);
  // What compiling would object to, found while the node can still be left to others.
  const NBitsSource source =
      product.weight(node.required_constant(kB, "B"), node.required_constant(kScales, "scales"), nullptr);
  auto plan = std::make_unique<NBitsPlan>(claims, std::move(product), source, node.required_variable(kA, "A"));
  plan->nodes = {graph_node};
  plan->set_bias(node, kBias);
  plan->extend(claims, node);
  return plan;
}

}  // namespace onnxpress
