#include "dequantized_matmul.h"

#include <cstring>

#include "kernels/bit_planes.h"
#include "nbits_plan.h"

namespace onnxpress {
namespace {

// A weight [K, N] as DequantizeLinear stores it.
struct DequantizedWeight {
  std::int64_t K = 0, N = 0;
  bool transposed = false;                     // stored as [N, K]
  ort::ElementType element = ort::kUndefined;  // of the codes and zero points
  ort::ElementType scale_type = ort::kUndefined;
  std::int64_t block_size = 0;                             // along K
  std::int64_t scale_per_block = 0, scale_per_column = 0;  // steps between scales, in elements
  const std::uint8_t* codes = nullptr;
  const std::uint8_t* scales = nullptr;
  const std::uint8_t* zero_points = nullptr;

  int bits() const { return element == ort::kInt4 || element == ort::kUint4 ? 4 : 8; }
  bool is_signed() const { return element == ort::kInt4 || element == ort::kInt8; }

  // A code or zero point as unsigned: signed ones are shifted by half the range, which cancels out between the two.
  std::uint8_t at(const std::uint8_t* values, std::int64_t index) const {
    const int value = bits() == 4 ? values[index / 2] >> (index % 2 * 4) & 15 : values[index];
    return static_cast<std::uint8_t>(is_signed() ? value ^ 1 << (bits() - 1) : value);
  }
  std::uint8_t code(std::int64_t k, std::int64_t n) const { return at(codes, transposed ? n * K + k : k * N + n); }
  std::int64_t scale_index(std::int64_t k, std::int64_t n) const {
    return k / block_size * scale_per_block + n * scale_per_column;
  }
  std::uint8_t zero_point(std::int64_t k, std::int64_t n) const {
    if (zero_points != nullptr) return at(zero_points, scale_index(k, n));
    return static_cast<std::uint8_t>(is_signed() ? 1 << (bits() - 1) : 0);
  }
};

std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

// Blocks that the kernels know: a power of two from 16 to 256 that divides the weight's own.
std::int64_t kernel_block_size(const DequantizedWeight& w) {
  const std::int64_t own = w.block_size >= w.K ? round_up(w.K, 32) : w.block_size;
  std::int64_t size = 256;
  while (size > 1 && own % size != 0) size /= 2;
  return size;
}

bool is_one_number(const ort::TypeAndShape& tensor) {
  return tensor.dims.empty() || tensor.dims == std::vector<std::int64_t>{1};
}

DequantizedWeight read_weight(const ort::Api& api, const GraphNode& dequantize, bool transposed) {
  DequantizedWeight w;
  const ort::Value* codes = dequantize.required_constant(0, "x");
  const ort::Value* scales = dequantize.required_constant(1, "x_scale");
  const ort::TypeAndShape type = ort::type_and_shape(api, codes), scale = ort::type_and_shape(api, scales);
  if (type.type != ort::kInt4 && type.type != ort::kUint4 && type.type != ort::kInt8 && type.type != ort::kUint8) {
    dequantize.reject("x is not of 4 or 8 bits");
  }
  if (type.dims.size() != 2) dequantize.reject("x has not two axes");
  if (scale.type != ort::kFloat && scale.type != ort::kFloat16) {
    dequantize.reject("x_scale is neither float32 nor float16");
  }
  w.transposed = transposed;
  w.element = type.type;
  w.scale_type = scale.type;
  w.K = type.dims[transposed ? 1 : 0];
  w.N = type.dims[transposed ? 0 : 1];
  if (w.K < 1 || w.N < 1) dequantize.reject("x is empty");

  std::int64_t axis = dequantize.attribute("axis", 1);
  if (axis < -2 || axis > 1) dequantize.reject("axis " + std::to_string(axis) + " is none of a matrix");
  if (axis < 0) axis += 2;
  const bool along_k = axis == (transposed ? 1 : 0);
  w.block_size = dequantize.attribute("block_size", 0);
  if (is_one_number(scale) && w.block_size == 0) {
    w.block_size = w.K;  // one scale for all
  } else if (w.block_size == 0 && !along_k && scale.dims == std::vector<std::int64_t>{w.N}) {
    w.block_size = w.K;  // one a column
    w.scale_per_column = 1;
  } else if (w.block_size > 0 && along_k) {
    const std::int64_t blocks = (w.K + w.block_size - 1) / w.block_size;
    w.scale_per_block = transposed ? 1 : w.N;
    w.scale_per_column = transposed ? blocks : 1;
    if (scale.dims != (transposed ? std::vector<std::int64_t>{w.N, blocks} : std::vector<std::int64_t>{blocks, w.N})) {
      dequantize.reject("x_scale has shape " + ort::to_string(scale.dims) + ", which does not fit blocks of " +
                        std::to_string(w.block_size));
    }
  } else {
    dequantize.reject("its scales are neither one for all, one a column nor in blocks along K");
  }
  if (kernel_block_size(w) < 16)
    dequantize.reject("block_size " + std::to_string(w.block_size) + " is no multiple of 16");
  if (const std::optional<GraphValue> value = dequantize.input(2)) {
    const ort::Value* zero_points = dequantize.required_constant(2, "x_zero_point");
    const ort::TypeAndShape zero = ort::type_and_shape(api, zero_points);
    if (zero.type != w.element || (zero.dims != scale.dims && !(is_one_number(zero) && is_one_number(scale)))) {
      dequantize.reject("x_zero_point has not the type of x and the shape of x_scale");
    }
    w.zero_points = static_cast<const std::uint8_t*>(ort::data(api, zero_points));
  }
  w.codes = static_cast<const std::uint8_t*>(ort::data(api, codes));
  w.scales = static_cast<const std::uint8_t*>(ort::data(api, scales));
  return w;
}

// One output channel in the order of MatMulNBits.
void store_column(const DequantizedWeight& w, std::int64_t n, std::int64_t block_size, StoredWeight& stored,
                  std::vector<std::uint8_t>& codes, std::vector<std::uint8_t>& zero_points) {
  const std::int64_t blocks = stored.source.blocks();
  const std::size_t scale_bytes = w.scale_type == ort::kFloat ? 4 : 2;
  for (std::int64_t k = 0; k < w.K; ++k) codes[static_cast<std::size_t>(k)] = w.code(k, n);
  pack_planes(codes.data(), blocks * block_size, w.bits(),
              stored.codes.data() + n * blocks * block_size * w.bits() / 8);
  for (std::int64_t block = 0; block < blocks; ++block) {
    std::memcpy(stored.scales.data() + static_cast<std::size_t>(n * blocks + block) * scale_bytes,
                w.scales + static_cast<std::size_t>(w.scale_index(block * block_size, n)) * scale_bytes, scale_bytes);
    zero_points[static_cast<std::size_t>(block)] = w.zero_point(block * block_size, n);
  }
  const std::int64_t zero_bytes = packed_bytes(blocks, w.bits());
  pack_planes(zero_points.data(), blocks, w.bits(), stored.zero_points.data() + n * zero_bytes);
}

StoredWeight store(const DequantizedWeight& w) {
  StoredWeight stored;
  NBitsSource& source = stored.source;
  source.K = w.K;
  source.N = w.N;
  source.bits = w.bits();
  source.block_size = kernel_block_size(w);
  source.scale_type = w.scale_type == ort::kFloat ? ScaleType::kFloat32 : ScaleType::kFloat16;
  const std::int64_t blocks = source.blocks(), padded = blocks * source.block_size;
  stored.codes.resize(static_cast<std::size_t>(w.N * padded * source.bits / 8));
  stored.scales.resize(static_cast<std::size_t>(w.N * blocks) * (w.scale_type == ort::kFloat ? 4 : 2));
  stored.zero_points.resize(static_cast<std::size_t>(w.N * packed_bytes(blocks, source.bits)));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(padded)), zero_points(static_cast<std::size_t>(blocks));
  for (std::int64_t n = 0; n < w.N; ++n) store_column(w, n, source.block_size, stored, codes, zero_points);
  source.codes = stored.codes.data();
  source.scales = stored.scales.data();
  // Signed codes without zero points are symmetric around the middle, which the kernels take for granted.
  if (w.zero_points != nullptr || !w.is_signed()) source.zero_points = stored.zero_points.data();
  return stored;
}

// The DequantizeLinear behind the second input of a product, through a Transpose, if nothing else reads them.
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

bool is_dequantized(const Claims& claims, const GraphValue& value) {
  const ort::Node* producer = claims.graph.producer(value);
  return producer != nullptr && GraphNode(claims.api, producer).is("DequantizeLinear");
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
  const DequantizedWeight weight = read_weight(claims.api, *dequantize, transposed);
  const GraphValue a = node.required(0, "A");
  if (weight.bits() == 8 && is_dequantized(claims, a)) node.reject("both inputs are quantized");
  if (gemm && !is_plain_gemm(node)) node.reject("transA, alpha or beta is not the default");

  NBitsTypes types{a.type().element, weight.scale_type, ort::kUint8};
  if (types.activation != weight.scale_type) node.reject("its first input is neither float32 nor float16");
  const std::int64_t level = claims.options.accuracy_level.value_or(claims.options.qdq_accuracy_level);
  const NBitsAttributes attributes{weight.K, weight.N, weight.bits(), kernel_block_size(weight), level};
  NBitsProduct product(claims.api, node.label(), attributes, types, claims.options.isa);

  auto plan = std::make_unique<NBitsPlan>(claims, std::move(product), [weight] { return store(weight); }, a.name());
  plan->nodes = std::move(nodes);
  plan->nodes.push_back(graph_node);
  if (gemm && node.input(2)) plan->set_bias(node.required_constant(2, "C"));
  plan->extend(claims, node);
  return plan;
}

}  // namespace onnxpress
