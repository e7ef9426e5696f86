#include "dequantized_matmul.h"

#include <algorithm>

#include "dequantize.h"
#include "minifloat.h"
#include "nbits_plan.h"

namespace onnxpress {
namespace {

// What codes of a type are; none where it has no products here.
struct Codes {
  int bits;
  bool is_signed;
  CodeKind kind = CodeKind::kInteger;
};

std::optional<Codes> codes_of(ort::ElementType type) {
  switch (type) {
    case ort::kInt4:
      return Codes{4, true};
    case ort::kUint4:
      return Codes{4, false};
    case ort::kInt8:
      return Codes{8, true};
    case ort::kUint8:
      return Codes{8, false};
    case ort::kFloat8E4M3FN:
      return Codes{8, false, CodeKind::kE4M3FN};
    case ort::kFloat8E5M2:
      return Codes{8, false, CodeKind::kE5M2};
    case ort::kFloat4E2M1:
      return Codes{4, false, CodeKind::kE2M1};
    default:
      return std::nullopt;
  }
}

// Whether all are zero, of whatever type.
bool is_zero(const ort::Value* value, const ort::Api& api) {
  const ort::TypeAndShape type = ort::type_and_shape(api, value);
  std::int64_t count = 1;
  for (std::int64_t size : type.dims) count *= size;
  if (type.type == ort::kFloat4E2M1) count = (count + 1) / 2;
  const auto* bytes = static_cast<const std::uint8_t*>(ort::data(api, value));
  return std::all_of(bytes, bytes + count, [](std::uint8_t byte) { return byte == 0; });
}

// A weight [K, N], stored as [N, K] if `transposed`.
NBitsSource read_weight(const ort::Api& api, const GraphNode& dequantize, bool transposed) {
  NBitsSource w;
  const ort::Value* codes = dequantize.required_constant(0, "x");
  const ort::Value* scales = dequantize.required_constant(1, "x_scale");
  const ort::TypeAndShape type = ort::type_and_shape(api, codes), scale = ort::type_and_shape(api, scales);
  const std::optional<Codes> known = codes_of(type.type);
  if (!known) dequantize.reject("x is not of 4 or 8 bits");
  if (type.dims.size() != 2) dequantize.reject("x has not two axes");
  if (scale.type != ort::kFloat && scale.type != ort::kFloat16 && scale.type != ort::kBFloat16) {
    dequantize.reject("x_scale is neither float32, float16 nor bfloat16");
  }
  w.layout = transposed ? NBitsSource::Layout::kColumns : NBitsSource::Layout::kRows;
  w.bits = known->bits;
  w.is_signed = known->is_signed;
  w.kind = known->kind;
  w.scale_type = scale_type_of(scale.type);
  w.K = type.dims[transposed ? 1 : 0];
  w.N = type.dims[transposed ? 0 : 1];
  if (w.K < 1 || w.N < 1) dequantize.reject("x is empty");

  std::int64_t axis = dequantize.attribute("axis", 1);
  if (axis < -2 || axis > 1) dequantize.reject("axis " + std::to_string(axis) + " is none of a matrix");
  if (axis < 0) axis += 2;
  const bool along_k = axis == (transposed ? 1 : 0);
  const std::int64_t block_size = dequantize.attribute("block_size", 0);
  w.block_size = block_size > 0 ? std::min(block_size, w.K) : w.K;
  if (is_one_number(scale) && block_size == 0) {
    // one scale for all
  } else if (block_size == 0 && !along_k && scale.dims == std::vector<std::int64_t>{w.N}) {
    w.scale_per_column = 1;
  } else if (block_size > 0 && along_k) {
    const std::int64_t blocks = w.blocks();
    w.scale_per_block = transposed ? 1 : w.N;
    w.scale_per_column = transposed ? blocks : 1;
    if (scale.dims != (transposed ? std::vector<std::int64_t>{w.N, blocks} : std::vector<std::int64_t>{blocks, w.N})) {
      dequantize.reject("x_scale has shape " + ort::to_string(scale.dims) + ", which does not fit blocks of " +
                        std::to_string(block_size));
    }
  } else {
    dequantize.reject("its scales are neither one for all, one a column nor in blocks along K");
  }
  if (!is_block_size(w.block_size, w.K)) {
    dequantize.reject("block_size " + std::to_string(block_size) + " is no multiple of 16");
  }
  if (const std::optional<GraphValue> value = dequantize.input(2)) {
    const ort::Value* zero_points = dequantize.required_constant(2, "x_zero_point");
    const ort::TypeAndShape zero = ort::type_and_shape(api, zero_points);
    if (zero.type != type.type || (zero.dims != scale.dims && !(is_one_number(zero) && is_one_number(scale)))) {
      dequantize.reject("x_zero_point has not the type of x and the shape of x_scale");
    }
    if (w.kind == CodeKind::kInteger) {
      w.zero_points = static_cast<const std::uint8_t*>(ort::data(api, zero_points));
    } else if (!is_zero(zero_points, api)) {
      dequantize.reject("x_zero_point of floating-point codes is not zero");
    }
  }
  w.codes = static_cast<const std::uint8_t*>(ort::data(api, codes));
  w.scales = ort::data(api, scales);
  return w;
}

}  // namespace

std::unique_ptr<Plan> plan_dequantized_matmul(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  const bool gemm = node.is("Gemm");
  if (!gemm && !node.is("MatMul")) return nullptr;
  bool transposed = gemm && node.attribute("transB", 0) != 0;
  std::vector<const ort::Node*> nodes;
  const std::optional<GraphNode> dequantize = find_weight(claims, node, nodes, transposed);
  if (!dequantize) return nullptr;
  const NBitsSource weight = read_weight(claims.api, *dequantize, transposed);
  const GraphValue a = node.required(0, "A");
  const bool is_integer = weight.kind == CodeKind::kInteger;
  if (is_integer && weight.bits == 8 && dequantized_by(claims, a)) node.reject("both inputs are quantized");
  if (gemm && !is_plain_gemm(node)) node.reject("transA, alpha or beta is not the default");

  const ort::ElementType activation = a.type().element;
  if (activation != ort::kFloat && activation != ort::kFloat16) {
    node.reject("its first input is neither float32 nor float16");
  }
  const std::int64_t level = is_integer ? claims.options.accuracy_level.value_or(claims.options.qdq_accuracy_level)
                                        : minifloat_level(claims.options, 0);
  const NBitsAttributes attributes{weight.K, weight.N, weight.bits, weight.block_size, level, weight.kind};
  NBitsProduct product(claims.api, node.label(), attributes, {activation, activation, ort::kUint8}, claims.options.isa);
  product.check_numbers(weight);

  auto plan = std::make_unique<NBitsPlan>(claims, std::move(product), weight, node.required_variable(0, "A"));
  plan->nodes = std::move(nodes);
  plan->nodes.push_back(graph_node);
  if (gemm && node.input(2)) plan->set_bias(node.required_constant(2, "C"));
  plan->extend(claims, node);
  return plan;
}

}  // namespace onnxpress
