#include "ops/block_sparse_product.h"

#include <cmath>
#include <utility>

#include "ops/custom_op.h"
#include "ops/shared_weights.h"

namespace onnxpress {
namespace {

class Reader {
 public:
  Reader(const ort::Api& api, const std::string& label, const ort::Value* const (&constants)[kBlockInputs])
      : api_(api), label_(label), constants_(constants) {}

  bool has(BlockSparseInput input) const { return constants_[input] != nullptr; }

  std::vector<std::int64_t> shape(BlockSparseInput input) const { return type(input).dims; }
  ort::ElementType element(BlockSparseInput input) const { return type(input).type; }

  template <class T>
  const T* data(BlockSparseInput input, ort::ElementType element, const std::vector<std::int64_t>& shape) const {
    return static_cast<const T*>(checked_data(api_, label_, kBlockInputNames[input], constant(input), element, shape));
  }

  // Scale and zero point, both or none.
  std::optional<Int8Format> format(BlockSparseInput scale, BlockSparseInput zero_point) const {
    if (has(scale) != has(zero_point)) {
      reject(std::string("has only one of ") + kBlockInputNames[scale] + " and " + kBlockInputNames[zero_point]);
    }
    if (!has(scale)) return std::nullopt;
    const float value = *data<float>(scale, ort::kFloat, {});
    if (!std::isnormal(value) || value < 0) {
      reject(std::string("input ") + kBlockInputNames[scale] + " is " + std::to_string(value) +
             ", must be a positive number");
    }
    return Int8Format{value, *data<std::uint8_t>(zero_point, ort::kUint8, {}), false};
  }

  [[noreturn]] void reject(const std::string& what) const { throw ort::InvalidArgument(label_ + ": " + what); }

 private:
  const ort::Value* constant(BlockSparseInput input) const {
    if (!has(input)) reject(std::string("input ") + kBlockInputNames[input] + " is missing, or no constant");
    return constants_[input];
  }
  ort::TypeAndShape type(BlockSparseInput input) const { return ort::type_and_shape(api_, constant(input)); }

  const ort::Api& api_;
  const std::string& label_;
  const ort::Value* const (&constants_)[kBlockInputs];
};

BlockSparseSource read_source(const Reader& read, const BlockSparseAttributes& attributes) {
  BlockSparseSource source;
  source.K = attributes.K;
  source.N = attributes.N;
  source.block_k = attributes.block_k;
  source.block_n = attributes.block_n;
  const std::string wrong_size = find_size_error(source);
  if (!wrong_size.empty()) read.reject(wrong_size);
  const std::vector<std::int64_t> shape = read.shape(kBlockValues);
  source.blocks = shape.empty() ? 0 : shape[0];
  const std::vector<std::int64_t> expected{source.blocks, source.block_n, source.block_k};
  if (read.element(kBlockValues) == ort::kFloat) {
    source.is_float = true;
    source.floats = read.data<float>(kBlockValues, ort::kFloat, expected);
    if (read.has(kBlockScales)) read.reject("input scales is of int8 values");
  } else {
    source.codes = read.data<std::int8_t>(kBlockValues, ort::kInt8, expected);
    source.scales = read.data<float>(kBlockScales, ort::kFloat, {source.N});
  }
  source.indices = read.data<std::int32_t>(kBlockIndices, ort::kInt32, {source.blocks});
  source.offsets = read.data<std::int32_t>(kBlockOffsets, ort::kInt32, {source.block_rows() + 1});
  const std::string wrong = find_error(source);
  if (!wrong.empty()) read.reject(wrong);
  return source;
}

}  // namespace

BlockSparseNode read_block_sparse(const ort::Api& api, const std::string& label,
                                  const BlockSparseAttributes& attributes, ort::ElementType a,
                                  const ort::Value* const (&constants)[kBlockInputs]) {
  const Reader read(api, label, constants);
  BlockSparseNode node;
  node.source = read_source(read, attributes);
  if (read.has(kBlockBias)) node.bias = read.data<float>(kBlockBias, ort::kFloat, {attributes.N});

  BlockSparseEpilogue& epilogue = node.epilogue;
  epilogue.label = label;
  epilogue.is_uint8 = a == ort::kUint8;
  if (!epilogue.is_uint8 && a != ort::kFloat) read.reject("input A is neither float32 nor uint8");
  const std::optional<Int8Format> input = read.format(kBlockAScale, kBlockAZeroPoint);
  if (input && node.source.is_float) read.reject("input a_scale is of int8 values");
  if (!input && epilogue.is_uint8) read.reject("input A is uint8, which needs a_scale and a_zero_point");
  epilogue.is_static = input.has_value();
  if (input) epilogue.input = *input;
  epilogue.output = read.format(kBlockYScale, kBlockYZeroPoint);
  const std::string& name = attributes.activation;
  if (const std::optional<Activation> activation = activation_named(name)) {
    epilogue.activation = *activation;
  } else if (!name.empty()) {
    read.reject("activation is '" + name + "', must be relu, gelu, gelu_tanh or nothing");
  }
  return node;
}

BlockSparseProduct::BlockSparseProduct(const ort::Api& api, const BlockSparseNode& node, Isa isa)
    : BlockSparseProduct(
          api, share(pack(node.source)),
          node.bias != nullptr ? copy(node.bias, static_cast<std::size_t>(node.source.N) * sizeof(float)) : Blob{},
          node.epilogue, isa) {}

BlockSparseProduct::BlockSparseProduct(const ort::Api& api, PackedBlockSparse weight, Blob bias,
                                       BlockSparseEpilogue epilogue, Isa isa)
    : api_(api), weight_(std::move(weight)), bias_(std::move(bias)), epilogue_(std::move(epilogue)), isa_(isa) {}

void BlockSparseProduct::compute(ort::KernelContext* context, const ort::Value* a, const Parallel& pool) const {
  const BlockSparseWeight& w = weight_.view;
  std::vector<std::int64_t> shape = ort::type_and_shape(api_, a).dims;
  if (shape.empty() || shape.back() != w.K) {
    throw ort::InvalidArgument(epilogue_.label + ": input A has shape " + ort::to_string(shape) +
                               ", its last size must be K=" + std::to_string(w.K));
  }
  shape.back() = w.N;
  BlockSparseProblem problem;
  problem.M = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) problem.M *= shape[axis];
  ort::Value* y = nullptr;
  ort::check(api_, api_.KernelContext_GetOutput(context, std::size_t{0}, shape.data(), shape.size(), &y));
  if (y == nullptr || problem.M == 0) return;

  problem.weight = &w;
  problem.bias = reinterpret_cast<const float*>(bias_.data());
  problem.activation = epilogue_.activation;
  problem.is_static = epilogue_.is_static;
  problem.input = epilogue_.input;
  const void* activations = ort::data(api_, a);
  if (epilogue_.is_uint8) {
    problem.codes = static_cast<const std::uint8_t*>(activations);
  } else {
    problem.floats = static_cast<const float*>(activations);
  }
  void* results = const_cast<void*>(ort::data(api_, y));
  if (epilogue_.output) {
    problem.output = *epilogue_.output;
    problem.codes_out = static_cast<std::uint8_t*>(results);
  } else {
    problem.floats_out = static_cast<float*>(results);
  }
  block_sparse_matmul(problem, isa_, pool);
}

}  // namespace onnxpress
