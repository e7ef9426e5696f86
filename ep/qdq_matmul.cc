#include "qdq_matmul.h"

#include <utility>

#include "dequantize.h"
#include "int8_plan.h"

namespace onnxpress {
namespace {

bool equal(const Int8Format& a, const Int8Format& b) {
  return a.scale == b.scale && a.zero_point == b.zero_point && a.is_signed == b.is_signed;
}

// A weight [K, N], stored as [N, K] if `transposed`.
Int8Source read_weight(const ort::Api& api, const GraphNode& dequantize, bool transposed) {
  const Int8Constants constants{dequantize.required_constant(0, "x"), dequantize.required_constant(1, "x_scale"),
                                dequantize.input(2) ? dequantize.required_constant(2, "x_zero_point") : nullptr,
                                transposed};
  const Int8Source weight = read_int8_weight(api, dequantize, constants);
  if (dequantize.attribute("block_size", 0) != 0) dequantize.reject("its weight is in blocks");
  if (constants.zero_points != nullptr && weight.zero_point_per_column != weight.scale_per_column) {
    dequantize.reject("x_zero_point has not the shape of x_scale");
  }
  const std::int64_t axis = dequantize.attribute("axis", 1), columns = transposed ? 0 : 1;
  if (weight.scale_per_column && axis != columns && axis != columns - 2) {
    dequantize.reject("axis " + std::to_string(axis) + " is not that of the columns");
  }
  return weight;
}

// The activations behind a DequantizeLinear: its codes, or what a QuantizeLinear of our own rounds to them.
Int8Input read_input(const Claims& claims, const GraphNode& dequantize, std::vector<const ort::Node*>& nodes) {
  const GraphValue codes = dequantize.required(0, "x"), dequantized = dequantize.output();
  if (claims.graph.only_reader(dequantized) == nullptr) dequantize.reject("others read its result");
  if (dequantized.type().element != ort::kFloat) dequantize.reject("its result is not float32");
  const std::optional<Int8Format> format = read_format(claims.api, dequantize, codes.type().element);
  if (!format) dequantize.reject("its format is not of 8 bits with one constant scale and zero point in float32");
  nodes.push_back(dequantize.get());

  const Int8Input input{codes, *format};
  const ort::Node* producer = claims.graph.producer(codes);
  if (producer == nullptr || claims.graph.only_reader(codes) == nullptr || !claims.is_free(producer)) return input;
  const GraphNode quantize(claims.api, producer);
  if (!quantize.is("QuantizeLinear")) return input;
  const GraphValue x = quantize.required(0, "x");
  const std::optional<Int8Format> rounded = read_format(claims.api, quantize, codes.type().element);
  if (!rounded || !equal(*rounded, *format) || x.type().element != ort::kFloat) return input;
  nodes.push_back(producer);
  return {x, *format};
}

void take_output(const Claims& claims, const GraphValue& product, Int8Plan& plan) {
  const std::optional<GraphNode> quantize = claims.free_reader(product);
  if (!quantize || !quantize->is("QuantizeLinear")) return;
  if (quantize->required(0, "x").name() != product.name()) return;
  const std::optional<Int8Format> format = read_format(claims.api, *quantize, quantize->output().type().element);
  if (!format) return;
  plan.set_output(*format);
  plan.nodes.push_back(quantize->get());
}

bool is_made_by(const Claims& claims, const GraphValue& value, const char* op_type) {
  const ort::Node* producer = claims.graph.producer(value);
  return producer != nullptr && GraphNode(claims.api, producer).is(op_type);
}

// Whether ONNX Runtime, on x86, leaves codes signed. It makes those unsigned that a QuantizeLinear makes for one
// reader.
bool stay_signed(const Claims& claims, const GraphValue& codes) {
  if (codes.type().element != ort::kInt8) return false;
  return !is_made_by(claims, codes, "QuantizeLinear") || claims.graph.only_reader(codes) == nullptr;
}

// Whether ONNX Runtime, on x86, has a kernel of int8 for a product of these codes: what comes and goes has to be
// unsigned, and the bias of a Gemm rounded, which it does itself where the result is rounded.
bool has_kernel(const Claims& claims, const GraphNode& product, const GraphValue& codes) {
  if (stay_signed(claims, codes)) return false;
  const ort::Node* reader = claims.graph.only_reader(product.output());
  if (reader != nullptr && GraphNode(claims.api, reader).is("QuantizeLinear")) {
    return !stay_signed(claims, GraphNode(claims.api, reader).output());
  }
  const bool gemm = product.is("Gemm") && product.input(2);
  return !gemm || is_made_by(claims, *product.input(2), "DequantizeLinear");
}

bool is_8_bits(const GraphNode& dequantize) {
  const ort::ElementType type = dequantize.required(0, "x").type().element;
  return type == ort::kInt8 || type == ort::kUint8;
}

}  // namespace

std::unique_ptr<Plan> plan_qdq_matmul(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  const bool gemm = node.is("Gemm");
  if (!gemm && !node.is("MatMul")) return nullptr;
  const std::optional<GraphNode> activations = dequantized_by(claims, node.required(0, "A"));
  if (!activations) return nullptr;
  bool transposed = gemm && node.attribute("transB", 0) != 0;
  std::vector<const ort::Node*> nodes;
  const std::optional<GraphNode> dequantize = find_weight(claims, node, nodes, transposed);
  if (!dequantize || !is_8_bits(*dequantize)) return nullptr;
  const Int8Source weight = read_weight(claims.api, *dequantize, transposed);
  if (gemm && !is_plain_gemm(node)) node.reject("transA, alpha or beta is not the default");

  const Int8Input input = read_input(claims, *activations, nodes);
  auto plan = std::make_unique<Int8Plan>(claims, node, input, weight);
  plan->has_rival = has_kernel(claims, node, activations->required(0, "x"));
  plan->nodes = std::move(nodes);
  plan->nodes.push_back(graph_node);
  if (gemm && node.input(2)) {
    std::optional<std::vector<float>> bias = read_bias(claims, *node.input(2), weight.N, plan->nodes);
    if (!bias) node.reject("input C is no constant bias of N values");
    plan->set_bias(std::move(*bias));
  }
  take_output(claims, plan->take_bias(claims, node.output()), *plan);
  return plan;
}

}  // namespace onnxpress
