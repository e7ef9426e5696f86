#include "ops/encoder_op.h"

#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "kernels/encoder_layer.h"
#include "ops/custom_op.h"
#include "ops/shared_weights.h"

namespace onnxpress {
namespace {

// In the order of the inputs. A product is its codes, scales and bias, a norm its scale and shift.
enum Input : std::size_t {
  kX,
  kQkv,
  kOut = kQkv + 3,
  kNorm1 = kOut + 3,
  kUp = kNorm1 + 2,
  kDown = kUp + 3,
  kNorm2 = kDown + 3,
  kMask = kNorm2 + 2,
  kInputs
};
constexpr const char* kNames[kInputs] = {"x",           "qkv",         "qkv_scales",  "qkv_bias",    "out",
                                         "out_scales",  "out_bias",    "norm1_scale", "norm1_shift", "up",
                                         "up_scales",   "up_bias",     "down",        "down_scales", "down_bias",
                                         "norm2_scale", "norm2_shift", "mask"};

// Constant inputs of a node, checked.
class Reader {
 public:
  Reader(const ort::Api& api, const ort::KernelInfo* info)
      : api_(api), info_(info), label_(label_of(api, info, "EncoderLayer")) {}

  const std::string& label() const { return label_; }
  [[noreturn]] void reject(const std::string& what) const { throw ort::InvalidArgument(label_ + ": " + what); }

  std::int64_t number(const char* name) const { return required_attribute(api_, info_, label_, name); }
  float real(const char* name) const {
    const std::optional<float> value = float_attribute(api_, info_, name);
    if (!value) reject(std::string("attribute ") + name + " is missing");
    if (!std::isfinite(*value) || *value < 0)
      reject(std::string("attribute ") + name + " must be a finite number from 0");
    return *value;
  }
  Activation activation() const {
    const std::string name = text_attribute(api_, info_, "activation");
    if (const std::optional<Activation> activation = activation_named(name)) return *activation;
    reject("activation is '" + name + "', must be relu, gelu or gelu_tanh");
  }

  // Rows and columns of a weight.
  std::pair<std::int64_t, std::int64_t> sizes(std::size_t input) const {
    const std::vector<std::int64_t> dims = ort::type_and_shape(api_, constant(input)).dims;
    constexpr std::int64_t kMost = std::int64_t{1} << 24;
    if (dims.size() != 2 || dims[0] < 1 || dims[0] > kSplitK || dims[1] < 1 || dims[1] > kMost) {
      reject(std::string("input ") + kNames[input] + " has shape " + ort::to_string(dims) +
             ", must be a matrix of at most " + std::to_string(kSplitK) + " rows");
    }
    return {dims[0], dims[1]};
  }

  template <class T>
  const T* data(std::size_t input, ort::ElementType element, const std::vector<std::int64_t>& shape) const {
    return static_cast<const T*>(checked_data(api_, label_, kNames[input], constant(input), element, shape));
  }

 private:
  const ort::Value* constant(std::size_t input) const {
    const ort::Value* value = constant_input(api_, info_, input);
    if (value == nullptr) reject(std::string("input ") + kNames[input] + " is missing, or no constant");
    return value;
  }

  const ort::Api& api_;
  const ort::KernelInfo* info_;
  const std::string label_;
};

// What of a layer is packed or copied, and stays.
struct Held {
  PackedInt8 products[4];
  Blob floats[8];  // four biases, then two norms of two
};

std::int64_t head_width(const Reader& read, std::int64_t heads, std::int64_t inner) {
  if (heads < 1 || inner % heads != 0 || inner / heads > kMaxHeadWidth) {
    read.reject("num_heads=" + std::to_string(heads) + " does not divide " + std::to_string(inner) +
                ", the rows of input out, into heads of at most " + std::to_string(kMaxHeadWidth));
  }
  return inner / heads;
}

Held read_held(const Reader& read) {
  const auto [H, projected] = read.sizes(kQkv);
  const std::int64_t inner = read.sizes(kOut).first, F = read.sizes(kUp).second;
  const std::size_t inputs[] = {kQkv, kOut, kUp, kDown};
  const std::pair<std::int64_t, std::int64_t> sizes[] = {{H, 3 * inner}, {inner, H}, {H, F}, {F, H}};
  Held held;
  for (int i = 0; i < 4; ++i) {
    const auto [K, N] = sizes[i];
    if (K > kSplitK) read.reject(std::string("input ") + kNames[inputs[i]] + " has too many rows");
    Int8Source source;
    source.K = K;
    source.N = N;
    source.codes = reinterpret_cast<const std::uint8_t*>(read.data<std::int8_t>(inputs[i], ort::kInt8, {K, N}));
    source.scales = read.data<float>(inputs[i] + 1, ort::kFloat, {N});
    source.scale_per_column = true;
    held.products[i] = share(pack(source, Sequential()));
    const auto bytes = static_cast<std::size_t>(N) * sizeof(float);
    held.floats[i] = copy(read.data<float>(inputs[i] + 2, ort::kFloat, {N}), bytes);
  }
  const std::size_t norms[] = {kNorm1, kNorm1 + 1, kNorm2, kNorm2 + 1};
  for (int i = 0; i < 4; ++i) {
    held.floats[4 + i] =
        copy(read.data<float>(norms[i], ort::kFloat, {H}), static_cast<std::size_t>(H) * sizeof(float));
  }
  return held;
}

EncoderLayer make_layer(const Reader& read, const Held& held) {
  const auto floats = [&](int index) { return reinterpret_cast<const float*>(held.floats[index].data()); };
  const float epsilon = read.real("epsilon");
  EncoderLayer layer;
  layer.heads = read.number("num_heads");
  layer.width = head_width(read, layer.heads, held.products[1].view.K);
  layer.scale = read.real("scale");
  EncoderProduct* products[] = {&layer.qkv, &layer.out, &layer.up, &layer.down};
  for (int i = 0; i < 4; ++i) *products[i] = {held.products[i].view, floats(i)};
  layer.norm1 = {floats(4), floats(5), epsilon};
  layer.norm2 = {floats(6), floats(7), epsilon};
  layer.activation = read.activation();
  layer.norm_first = read.number("norm_first") != 0;
  return layer;
}

struct Types {};

class Kernel {
 public:
  Kernel(const ort::Api& api, const ort::KernelInfo* info, const Types&) : Kernel(api, Reader(api, info)) {}

  void compute(ort::KernelContext* context) const {
    const std::int64_t H = layer_.H();
    const ort::Value* x = input(context, kX);
    const std::vector<std::int64_t> shape = ort::type_and_shape(api_, x).dims;
    if (shape.size() != 3 || shape[2] != H) {
      reject("input x has shape " + ort::to_string(shape) + ", must be [batch, sequence, " + std::to_string(H) + "]");
    }
    if (shape[1] > kMaxTokens) {
      reject("input x has sequences of " + std::to_string(shape[1]) + " tokens; it takes at most " +
             std::to_string(kMaxTokens));
    }
    EncoderProblem problem;
    problem.layer = &layer_;
    problem.batch = shape[0];
    problem.sequence = shape[1];
    if (const ort::Value* mask = input(context, kMask)) {
      const std::vector<std::int64_t> dims = ort::type_and_shape(api_, mask).dims;
      if (dims != std::vector<std::int64_t>{shape[0], shape[1]}) {
        reject("input mask has shape " + ort::to_string(dims) + ", must be [" + std::to_string(shape[0]) + ", " +
               std::to_string(shape[1]) + "]");
      }
      problem.mask = static_cast<const std::int32_t*>(ort::data(api_, mask));
    }
    ort::Value* y = nullptr;
    ort::check(api_, api_.KernelContext_GetOutput(context, std::size_t{0}, shape.data(), shape.size(), &y));
    ort::Value* significance = nullptr;  // stays so where the node has no such output
    ort::check(api_,
               api_.KernelContext_GetOutput(context, std::size_t{1}, shape.data(), std::size_t{2}, &significance));
    if (y == nullptr || shape[0] == 0 || shape[1] == 0) return;
    if (significance != nullptr) {
      problem.significance = static_cast<float*>(const_cast<void*>(ort::data(api_, significance)));
    }
    problem.x = static_cast<const float*>(ort::data(api_, x));
    problem.y = static_cast<float*>(const_cast<void*>(ort::data(api_, y)));
    encoder_layer(problem, isa_, ort::IntraOpPool(api_, context));
  }

 private:
  Kernel(const ort::Api& api, const Reader& read)
      : api_(api), label_(read.label()), held_(read_held(read)), layer_(make_layer(read, held_)), isa_(chosen_isa()) {}

  [[noreturn]] void reject(const std::string& what) const { throw ort::InvalidArgument(label_ + ": " + what); }

  const ort::Value* input(ort::KernelContext* context, std::size_t index) const {
    std::size_t count = 0;
    ort::check(api_, api_.KernelContext_GetInputCount(context, &count));
    if (index >= count) return nullptr;
    const ort::Value* value = nullptr;
    ort::check(api_, api_.KernelContext_GetInput(context, index, &value));
    return value;
  }

  const ort::Api& api_;
  const std::string label_;
  const Held held_;
  const EncoderLayer layer_;
  const Isa isa_;
};

struct Definition {
  using Types = onnxpress::Types;
  using Kernel = onnxpress::Kernel;
  static constexpr const char* kName = "EncoderLayer";
  static constexpr std::size_t kInputs = onnxpress::kInputs, kRequired = kMask;
  static constexpr std::size_t kOutputs = 2;
  static constexpr bool kKeepsShape = true;

  static ort::ElementType input_type(const Types&, std::size_t index) {
    if (index == kMask) return ort::kInt32;
    return index == kQkv || index == kOut || index == kUp || index == kDown ? ort::kInt8 : ort::kFloat;
  }
  static ort::ElementType output_type(const Types&) { return ort::kFloat; }
  static std::optional<ort::ElementType> inferred_type(const ort::Api&, ort::ShapeInferContext*) {
    return std::nullopt;
  }
};

}  // namespace

std::vector<const ort::CustomOp*> encoder_ops(const ort::Api& api, bool infers_shapes) {
  return make_ops<Definition>(api, {Types{}}, infers_shapes);
}

}  // namespace onnxpress
