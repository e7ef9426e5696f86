#include "ops/minifloat_op.h"

#include <string>

#include "ops/custom_op.h"
#include "ops/nbits_kernel.h"

namespace onnxpress {
namespace {

enum Input : std::size_t { kA, kB, kScales, kBias, kCount };

struct MiniFloatTypes {
  ort::ElementType activation, scale;
};

NBitsProduct make_product(const ort::Api& api, const ort::KernelInfo* info, const MiniFloatTypes& types) {
  const std::string label = label_of(api, info, "MatMulMiniFloat");
  const auto optional = [&](const char* name) { return number_attribute(api, info, name).value_or(0); };
  const NBitsAttributes attributes = minifloat_attributes(
      label, text_attribute(api, info, "format"), required_attribute(api, info, label, "K"),
      required_attribute(api, info, label, "N"), optional("block_size"), optional("accuracy_level"));
  return NBitsProduct(api, label, attributes, {types.activation, types.scale, ort::kUint8}, chosen_isa());
}

struct Definition {
  using Types = MiniFloatTypes;
  struct Kernel : NBitsKernel {
    Kernel(const ort::Api& api, const ort::KernelInfo* info, const Types& types)
        : NBitsKernel(api, info, make_product(api, info, types), {kNone, kBias}) {}
  };
  static constexpr const char* kName = "MatMulMiniFloat";
  static constexpr std::size_t kInputs = kCount, kRequired = kBias;
  static constexpr std::size_t kOutputs = 1;
  static constexpr bool kKeepsShape = false;

  static ort::ElementType input_type(const Types& types, std::size_t index) {
    if (index == kB) return ort::kUint8;
    return index == kScales ? types.scale : types.activation;
  }

  static ort::ElementType output_type(const Types& types) { return types.activation; }

  static std::optional<ort::ElementType> inferred_type(const ort::Api&, ort::ShapeInferContext*) {
    return std::nullopt;
  }
};

}  // namespace

std::vector<const ort::CustomOp*> minifloat_ops(const ort::Api& api, bool infers_shapes) {
  std::vector<MiniFloatTypes> all;
  for (ort::ElementType activation : {ort::kFloat, ort::kFloat16}) {
    for (ort::ElementType scale : {ort::kFloat, ort::kFloat16, ort::kBFloat16, ort::kUint8}) {
      all.push_back({activation, scale});
    }
  }
  return make_ops<Definition>(api, all, infers_shapes);
}

}  // namespace onnxpress
