#include "matmul_nbits.h"

#include "nbits_plan.h"

namespace onnxpress {
namespace {

NBitsAttributes read_attributes(const GraphNode& node, bool ours, const Options& options) {
  const auto required = [&](const char* name) {
    const std::optional<std::int64_t> value = node.attribute(name);
    if (!value) node.reject(std::string("attribute ") + name + " is missing");
    return *value;
  };
  if (!ours && node.attribute("weight_prepacked", 0) != 0) node.reject("weight_prepacked is not supported");
  return {required("K"), required("N"), ours ? required("bits") : node.attribute("bits", 4), required("block_size"),
          options.accuracy_level.value_or(node.attribute("accuracy_level", 0))};
}

NBitsTypes read_types(const GraphNode& node, std::size_t bias) {
  NBitsTypes types{};
  types.activation = node.required(0, "A").type().element;
  types.scale = node.required(2, "scales").type().element;
  const std::optional<GraphValue> zero_points = node.input(3);
  types.zero_point = zero_points ? zero_points->type().element : ort::kUint8;
  if (types.activation != ort::kFloat && types.activation != ort::kFloat16) {
    node.reject("input A is neither float32 nor float16");
  }
  if (types.scale != ort::kFloat && types.scale != ort::kFloat16 && types.scale != ort::kBFloat16) {
    node.reject("scales are neither float32, float16 nor bfloat16");
  }
  if (types.zero_point != ort::kUint8 && types.zero_point != types.scale) {
    node.reject("zero_points are neither uint8 nor of the type of scales");
  }
  if (node.required(1, "B").type().element != ort::kUint8) node.reject("input B is not uint8");
  if (node.input(bias) && node.input(bias)->type().element != types.activation) {
    node.reject("bias is not of the type of A");
  }
  return types;
}

}  // namespace

std::unique_ptr<Plan> plan_matmul_nbits(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  const bool ours = node.is("onnxpress", "MatMulNBits");
  if (!ours && !node.is("com.microsoft", "MatMulNBits")) return nullptr;
  if (!ours && node.input(4)) node.reject("g_idx is not supported");
  const std::size_t bias = ours ? 4 : 5;
  const NBitsAttributes attributes = read_attributes(node, ours, claims.options);
  if (!ours && (attributes.block_size < 16 || (attributes.block_size & (attributes.block_size - 1)) != 0)) {
    node.reject("block_size is " + std::to_string(attributes.block_size) + ", no power of two from 16");
  }
  const NBitsTypes types = read_types(node, bias);
  NBitsProduct product(claims.api, node.label(), attributes, types, claims.options.isa);
  const ort::Value* codes = node.required_constant(1, "B");
  const ort::Value* scales = node.required_constant(2, "scales");
  const ort::Value* zero_points = node.input(3) ? node.required_constant(3, "zero_points") : nullptr;
  // What compiling would object to, found while the node can still be left to others.
  const NBitsSource source = product.weight(codes, scales, zero_points);

  auto plan = std::make_unique<NBitsPlan>(claims, std::move(product), source, node.required_variable(0, "A"));
  plan->nodes = {graph_node};
  plan->has_rival = attributes.bits != 8 || zero_points == nullptr || types.zero_point == ort::kUint8;
  plan->set_bias(node, bias);
  plan->extend(claims, node);
  return plan;
}

}  // namespace onnxpress
