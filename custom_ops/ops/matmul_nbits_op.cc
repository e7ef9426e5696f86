#include "ops/matmul_nbits_op.h"

#include <string>

#include "ops/custom_op.h"
#include "ops/nbits_kernel.h"

namespace onnxpress {
namespace {

enum Input : std::size_t { kA, kB, kScales, kZeroPoints, kBias, kCount };

NBitsProduct make_product(const ort::Api& api, const ort::KernelInfo* info, const NBitsTypes& types) {
  const std::string label = label_of(api, info, "MatMulNBits");
  const auto required = [&](const char* name) { return required_attribute(api, info, label, name); };
  NBitsAttributes attributes{required("K"), required("N"), required("bits"), required("block_size"),
                             number_attribute(api, info, "accuracy_level").value_or(0)};
  return NBitsProduct(api, label, attributes, types, chosen_isa());
}

struct Definition {
  using Types = NBitsTypes;
  struct Kernel : NBitsKernel {
    Kernel(const ort::Api& api, const ort::KernelInfo* info, const Types& types)
        : NBitsKernel(api, info, make_product(api, info, types), {kZeroPoints, kBias}) {}
  };
  static constexpr const char* kName = "MatMulNBits";
  static constexpr std::size_t kInputs = kCount, kRequired = kZeroPoints;
  static constexpr std::size_t kOutputs = 1;
  static constexpr bool kKeepsShape = false;

  static ort::ElementType input_type(const Types& types, std::size_t index) {
    switch (index) {
      case kB:
        return ort::kUint8;
      case kScales:
        return types.scale;
      case kZeroPoints:
        return types.zero_point;
      default:
        return types.activation;
    }
  }

  static ort::ElementType output_type(const Types& types) { return types.activation; }

  static std::optional<ort::ElementType> inferred_type(const ort::Api&, ort::ShapeInferContext*) {
    return std::nullopt;
  }
};

}  // namespace

std::vector<const ort::CustomOp*> matmul_nbits_ops(const ort::Api& api, bool infers_shapes) {
  std::vector<NBitsTypes> all;
  for (ort::ElementType activation : {ort::kFloat, ort::kFloat16}) {
    for (ort::ElementType scale : {ort::kFloat, ort::kFloat16, ort::kBFloat16}) {
      for (ort::ElementType zero_point : {ort::kUint8, scale}) all.push_back({activation, scale, zero_point});
    }
  }
  return make_ops<Definition>(api, all, infers_shapes);
}

}  // namespace onnxpress
