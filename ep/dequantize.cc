#include "dequantize.h"

#include <algorithm>

namespace onnxpress {
namespace {

// Whether `scale` has one number, or one for each of the N values along the only axis.
bool is_scale_of_bias(const GraphNode& dequantize, const ort::TypeAndShape& scale, std::int64_t N) {
  if (scale.type != ort::kFloat) return false;
  if (is_one_number(scale)) return true;
  const std::int64_t axis = dequantize.attribute("axis", 1);
  return scale.dims == std::vector<std::int64_t>{N} && (axis == 0 || axis == -1);
}

bool has_zero_point(const ort::Api& api, const ort::Value* zero_points, std::int64_t N) {
  const ort::TypeAndShape type = ort::type_and_shape(api, zero_points);
  const bool known = type.type == ort::kInt32 && (is_one_number(type) || type.dims == std::vector<std::int64_t>{N});
  if (!known) return true;
  const auto* values = static_cast<const std::int32_t*>(ort::data(api, zero_points));
  return std::any_of(values, values + (is_one_number(type) ? 1 : N), [](std::int32_t value) { return value != 0; });
}

}  // namespace

bool is_one_number(const ort::TypeAndShape& tensor) {
  return tensor.dims.empty() || tensor.dims == std::vector<std::int64_t>{1};
}

std::optional<GraphNode> dequantized_by(const Claims& claims, const GraphValue& value) {
  const ort::Node* producer = claims.graph.producer(value);
  if (producer == nullptr) return std::nullopt;
  GraphNode node(claims.api, producer);
  if (!node.is("DequantizeLinear")) return std::nullopt;
  return node;
}

std::optional<GraphNode> find_weight(const Claims& claims, const GraphNode& product,
                                     std::vector<const ort::Node*>& nodes, bool& transposed) {
  std::optional<GraphValue> value = product.input(1);
  while (value) {
    const ort::Node* producer = claims.graph.producer(*value);
    if (producer == nullptr || claims.graph.only_reader(*value) == nullptr || !claims.is_free(producer))
      return std::nullopt;
    GraphNode node(claims.api, producer);
    nodes.insert(nodes.begin(), producer);
    if (node.is("DequantizeLinear")) return node;
    const std::vector<std::int64_t> order = node.attributes("perm");
    const bool swaps = order.empty() || order == std::vector<std::int64_t>{1, 0};
    if (!node.is("Transpose") || !swaps) return std::nullopt;
    transposed = !transposed;
    value = node.input(0);
  }
  return std::nullopt;
}

bool is_plain_gemm(const GraphNode& node) {
  return node.attribute("transA", 0) == 0 && node.float_attribute("alpha", 1) == 1.0f &&
         (!node.input(2) || node.float_attribute("beta", 1) == 1.0f);
}

std::optional<Int8Format> read_format(const ort::Api& api, const GraphNode& node, ort::ElementType codes) {
  if (codes != ort::kInt8 && codes != ort::kUint8) return std::nullopt;
  const std::optional<GraphValue> scale_value = node.input(1), zero_value = node.input(2);
  const ort::Value* scale = scale_value ? scale_value->constant() : nullptr;
  if (scale == nullptr || node.attribute("block_size", 0) != 0) return std::nullopt;
  const std::int64_t precision = node.attribute("precision", 0);  // the type to divide in, 0 for that of the scale
  if (precision != 0 && precision != ort::kFloat) return std::nullopt;
  const ort::TypeAndShape type = ort::type_and_shape(api, scale);
  if (type.type != ort::kFloat || !is_one_number(type)) return std::nullopt;
  Int8Format format{*static_cast<const float*>(ort::data(api, scale)), 0, codes == ort::kInt8};
  if (!zero_value) return format;
  const ort::Value* zero = zero_value->constant();
  if (zero == nullptr) return std::nullopt;
  const ort::TypeAndShape zero_type = ort::type_and_shape(api, zero);
  if (zero_type.type != codes || zero_type.dims != type.dims) return std::nullopt;
  const std::uint8_t code = *static_cast<const std::uint8_t*>(ort::data(api, zero));
  format.zero_point = format.is_signed ? static_cast<std::int8_t>(code) : code;
  return format;
}

std::optional<std::vector<float>> read_bias(const Claims& claims, const GraphValue& value, std::int64_t N,
                                            std::vector<const ort::Node*>& nodes) {
  const ort::Api& api = claims.api;
  const auto is_vector = [&](const ort::Value* constant, ort::ElementType type) {
    const ort::TypeAndShape found = ort::type_and_shape(api, constant);
    return found.type == type && found.dims == std::vector<std::int64_t>{N};
  };
  if (const ort::Value* constant = value.constant()) {
    if (!is_vector(constant, ort::kFloat)) return std::nullopt;
    const auto* values = static_cast<const float*>(ort::data(api, constant));
    return std::vector<float>(values, values + N);
  }
  const std::optional<GraphNode> dequantize = dequantized_by(claims, value);
  if (!dequantize || claims.graph.only_reader(value) == nullptr || !claims.is_free(dequantize->get())) {
    return std::nullopt;
  }
  const auto constant = [&](std::size_t index) {
    const std::optional<GraphValue> input = dequantize->input(index);
    return input ? input->constant() : nullptr;
  };
  const ort::Value *codes = constant(0), *scale = constant(1);
  if (codes == nullptr || scale == nullptr || !is_vector(codes, ort::kInt32)) return std::nullopt;
  const ort::TypeAndShape scale_type = ort::type_and_shape(api, scale);
  if (!is_scale_of_bias(*dequantize, scale_type, N)) return std::nullopt;
  if (dequantize->input(2) && (constant(2) == nullptr || has_zero_point(api, constant(2), N))) return std::nullopt;

  const auto* integers = static_cast<const std::int32_t*>(ort::data(api, codes));
  const auto* scales = static_cast<const float*>(ort::data(api, scale));
  std::vector<float> values(integers, integers + N);
  for (std::size_t n = 0; n < values.size(); ++n) values[n] *= scales[is_one_number(scale_type) ? 0 : n];
  nodes.push_back(dequantize->get());
  return values;
}

}  // namespace onnxpress
