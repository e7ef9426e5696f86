#include "ops/nbits_product.h"

#include <utility>

#include "kernels/bit_planes.h"
#include "kernels/minifloat.h"
#include "kernels/workspace.h"

namespace onnxpress {
namespace {

// Codes of a weight beyond this could overflow the sizes computed from them.
constexpr std::int64_t kMaxElements = std::int64_t{1} << 40;

}  // namespace

ScaleType scale_type_of(ort::ElementType type) {
  if (type == ort::kFloat16) return ScaleType::kFloat16;
  if (type == ort::kUint8) return ScaleType::kExponent;
  return type == ort::kBFloat16 ? ScaleType::kBFloat16 : ScaleType::kFloat32;
}

NBitsAttributes minifloat_attributes(const std::string& label, const std::string& format, std::int64_t K,
                                     std::int64_t N, std::int64_t block_size, std::int64_t accuracy_level) {
  const CodeKind kind = minifloat_kind(format.c_str());
  if (kind == CodeKind::kInteger) {
    throw ort::InvalidArgument(label + ": format is '" + format + "', must be " + minifloat_names());
  }
  if (accuracy_level == 4) {
    throw ort::InvalidArgument(label +
                               ": accuracy_level is 4, but floating-point codes have no products in int8; use " +
                               "0 for float32 or 3 for bfloat16");
  }
  return {K, N, minifloat(kind).bits(), block_size == 0 ? K : block_size, accuracy_level, kind};
}

NBitsProduct::NBitsProduct(const ort::Api& api, std::string label, const NBitsAttributes& attributes,
                           const NBitsTypes& types, Isa isa)
    : api_(api), label_(std::move(label)), attributes_(attributes), types_(types), isa_(isa) {
  const NBitsAttributes& a = attributes_;
  if (a.bits < 2 || a.bits > 8) reject("bits is " + std::to_string(a.bits) + ", must be 2 to 8");
  if (a.K < 1 || a.N < 1 || a.K > kMaxElements || a.N > kMaxElements / a.K) {
    reject("K is " + std::to_string(a.K) + " and N is " + std::to_string(a.N) + ", must be positive sizes");
  }
  if (!is_block_size(a.block_size, a.K) || a.block_size > kMaxElements / a.N) {
    reject("block_size is " + std::to_string(a.block_size) + ", must be a multiple of 16, or K for one block");
  }
  if (a.accuracy_level < 0 || a.accuracy_level > 4) {
    reject("accuracy_level is " + std::to_string(a.accuracy_level) + ", must be 0 to 4");
  }
}

NBitsSource NBitsProduct::weight(const ort::Value* codes, const ort::Value* scales,
                                 const ort::Value* zero_points) const {
  const NBitsAttributes& a = attributes_;
  NBitsSource source;
  source.K = a.K;
  source.N = a.N;
  source.bits = static_cast<int>(a.bits);
  source.kind = a.kind;
  source.block_size = a.block_size;
  source.scale_type = scale_type_of(types_.scale);
  const std::int64_t blocks = source.blocks(), block_bytes = packed_bytes(a.block_size, source.bits);
  source.codes = static_cast<const std::uint8_t*>(checked(codes, "B", {a.N, blocks, block_bytes}));
  source.scale_per_block = 1;
  source.scale_per_column = blocks;
  source.scales = checked(scales, "scales", {a.N, blocks});
  if (zero_points != nullptr && types_.zero_point == ort::kUint8) {
    const std::int64_t bytes = packed_bytes(blocks, source.bits);
    source.zero_points = static_cast<const std::uint8_t*>(checked(zero_points, "zero_points", {a.N, bytes}));
  } else if (zero_points != nullptr) {
    source.float_zero_points = checked(zero_points, "zero_points", {a.N, blocks});
  }
  check_numbers(source);
  return source;
}

void NBitsProduct::check_numbers(const NBitsSource& weight) const {
  if (weight.kind == CodeKind::kInteger) return;
  if (!weight.has_finite_codes()) {
    reject(std::string("input B holds codes that are infinity or NaN in ") + minifloat(weight.kind).name +
           "; quantize the weight so that it saturates");
  }
  if (!weight.has_positive_scales()) {
    reject("input scales holds values that are not positive numbers; quantize the weight anew");
  }
}

std::string NBitsProduct::attributes_text() const {
  const NBitsAttributes& a = attributes_;
  const std::string codes =
      a.kind == CodeKind::kInteger ? "bits=" + std::to_string(a.bits) : std::string("format=") + minifloat(a.kind).name;
  return "K=" + std::to_string(a.K) + ", N=" + std::to_string(a.N) + ", " + codes +
         ", block_size=" + std::to_string(a.block_size);
}

// The shape in full, or flat.
const void* NBitsProduct::checked(const ort::Value* value, const char* name,
                                  const std::vector<std::int64_t>& shape) const {
  if (value == nullptr) reject(std::string("input ") + name + " is missing");
  std::int64_t flat = 1;
  for (std::int64_t size : shape) flat *= size;
  const std::vector<std::int64_t> dims = ort::type_and_shape(api_, value).dims;
  if (dims != shape && dims != std::vector<std::int64_t>{flat}) {
    reject(std::string("input ") + name + " has shape " + ort::to_string(dims) + ", but " + attributes_text() +
           " need " + ort::to_string(shape));
  }
  return ort::data(api_, value);
}

const void* NBitsProduct::bias(const ort::Value* value) const {
  if (value == nullptr) return nullptr;
  const std::vector<std::int64_t> dims = ort::type_and_shape(api_, value).dims;
  if (dims != std::vector<std::int64_t>{attributes_.N}) {
    reject("input bias has shape " + ort::to_string(dims) + ", must be [N=" + std::to_string(attributes_.N) + "]");
  }
  return ort::data(api_, value);
}

bool NBitsProduct::is_bias(const ort::TypeAndShape& constant) const {
  return constant.type == types_.activation && constant.dims == std::vector<std::int64_t>{attributes_.N};
}

std::size_t NBitsProduct::bias_bytes() const {
  return static_cast<std::size_t>(attributes_.N) * (types_.activation == ort::kFloat ? 4 : 2);
}

// The values of a tensor of the shape of the output, which `met` says what becomes of.
const float* NBitsProduct::alike(const ort::Value* value, const std::vector<std::int64_t>& shape,
                                 const char* met) const {
  if (value == nullptr) return nullptr;
  const std::vector<std::int64_t> dims = ort::type_and_shape(api_, value).dims;
  if (dims != shape) {
    reject("its output of shape " + ort::to_string(shape) + " is " + met + " a tensor of shape " +
           ort::to_string(dims) + ", where the model says that the two are equal");
  }
  return static_cast<const float*>(ort::data(api_, value));
}

NBitsOutput NBitsProduct::compute(ort::KernelContext* context, const ort::Value* a, const NBitsWeight& weight,
                                  const RmsNorm& norm, const NBitsEpilogue& epilogue, const Parallel& pool) const {
  std::vector<std::int64_t> shape = ort::type_and_shape(api_, a).dims;
  if (shape.empty() || shape.back() != attributes_.K) {
    reject("input A has shape " + ort::to_string(shape) + ", its last size must be K=" + std::to_string(attributes_.K));
  }
  shape.back() = epilogue.glu == Glu::kNone ? attributes_.N : attributes_.N / 2;
  NBitsProblem problem;
  problem.M = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) problem.M *= shape[axis];
  problem.weight = &weight;
  problem.activation = epilogue.activation;
  problem.gate = alike(epilogue.gate, shape, "multiplied by");
  problem.addend = alike(epilogue.addend, shape, "added to");
  problem.norm = norm;
  problem.glu = epilogue.glu;
  ort::Value* y = nullptr;
  ort::check(api_, api_.KernelContext_GetOutput(context, std::size_t{0}, shape.data(), shape.size(), &y));
  if (y == nullptr) return {0, nullptr};  // nothing reads it
  void* values = const_cast<void*>(ort::data(api_, y));
  if (problem.M == 0) return {0, values};
  if (types_.activation == ort::kFloat) {
    problem.A = static_cast<const float*>(ort::data(api_, a));
    problem.bias = static_cast<const float*>(epilogue.bias);
    problem.Y = static_cast<float*>(values);
    multiply(problem, pool);
  } else {
    multiply_halves(ort::data(api_, a), epilogue.bias, values, problem, pool);
  }
  return {problem.M, values};
}

void NBitsProduct::multiply(const NBitsProblem& problem, const Parallel& pool) const {
  matmul_nbits(problem, compute_of(attributes_.accuracy_level), isa_, pool);
}

// float16 is a format of storage here: sums are float32.
void NBitsProduct::multiply_halves(const void* a, const void* bias, void* y, NBitsProblem problem,
                                   const Parallel& pool) const {
  const std::int64_t K = attributes_.K, N = attributes_.N, bytes = (K + N) * std::int64_t{sizeof(float)};
  const EvenChunks chunks(problem.M, bytes);
  const auto workspace =
      make_workspace(static_cast<std::size_t>(chunks.most() * bytes + N * std::int64_t{sizeof(float)}));
  auto* floats = reinterpret_cast<float*>(workspace.get());
  float *result = floats + chunks.most() * K, *added = result + chunks.most() * N;
  if (bias != nullptr) convert(static_cast<const std::uint16_t*>(bias), added, N, isa_);
  problem.A = floats;
  problem.bias = bias != nullptr ? added : nullptr;
  problem.Y = result;
  chunks.for_each([&](std::int64_t begin, std::int64_t rows) {
    problem.M = rows;
    convert(static_cast<const std::uint16_t*>(a) + begin * K, floats, rows * K, isa_);
    multiply(problem, pool);
    convert(result, static_cast<std::uint16_t*>(y) + begin * N, rows * N, isa_);
  });
}

}  // namespace onnxpress
