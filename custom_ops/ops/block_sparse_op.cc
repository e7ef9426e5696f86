#include "ops/block_sparse_op.h"

#include <optional>
#include <string>

#include "ops/block_sparse_product.h"
#include "ops/custom_op.h"
#include "ort/ort.h"

namespace onnxpress {
namespace {

struct Types {
  ort::ElementType a, values, y;
};

BlockSparseProduct make_product(const ort::Api& api, const ort::KernelInfo* info, const Types& types) {
  const std::string label = label_of(api, info, "BlockSparseMatMul");
  const auto required = [&](const char* name) { return required_attribute(api, info, label, name); };
  const BlockSparseAttributes attributes{required("K"), required("N"), required("block_k"), required("block_n"),
                                         text_attribute(api, info, "activation")};
  const ort::Value* constants[kBlockInputs] = {};
  for (std::size_t index = kBlockValues; index < kBlockInputs; ++index) {
    constants[index] = constant_input(api, info, index);
  }
  return BlockSparseProduct(api, read_block_sparse(api, label, attributes, types.a, constants), chosen_isa());
}

class Kernel {
 public:
  Kernel(const ort::Api& api, const ort::KernelInfo* info, const Types& types)
      : api_(api), product_(make_product(api, info, types)) {}

  void compute(ort::KernelContext* context) const {
    const ort::Value* a = nullptr;
    ort::check(api_, api_.KernelContext_GetInput(context, std::size_t{kBlockA}, &a));
    product_.compute(context, a, ort::IntraOpPool(api_, context));
  }

 private:
  const ort::Api& api_;
  const BlockSparseProduct product_;
};

struct Definition {
  using Types = onnxpress::Types;
  using Kernel = onnxpress::Kernel;
  static constexpr const char* kName = "BlockSparseMatMul";
  static constexpr std::size_t kInputs = kBlockInputs, kRequired = kBlockScales;
  static constexpr std::size_t kOutputs = 1;
  static constexpr bool kKeepsShape = false;

  // An op with a float32 output has a y_scale of a type that no valid node has: ONNX Runtime takes the type of an
  // output from the first op whose inputs fit.
  static ort::ElementType input_type(const Types& types, std::size_t index) {
    if (index == kBlockYScale && types.y == ort::kFloat) return ort::kInt64;
    switch (index) {
      case kBlockA:
        return types.a;
      case kBlockValues:
        return types.values;
      case kBlockIndices:
      case kBlockOffsets:
        return ort::kInt32;
      case kBlockAZeroPoint:
      case kBlockYZeroPoint:
        return ort::kUint8;
      default:
        return ort::kFloat;
    }
  }

  static ort::ElementType output_type(const Types& types) { return types.y; }

  // uint8 where the node says how to round the output.
  static std::optional<ort::ElementType> inferred_type(const ort::Api& api, ort::ShapeInferContext* context) {
    std::size_t inputs = 0;
    ort::check(api, api.ShapeInferContext_GetInputCount(context, &inputs));
    if (inputs <= kBlockYScale) return ort::kFloat;
    ort::TensorInfo* info = nullptr;  // belongs to the context
    ort::check(api, api.ShapeInferContext_GetInputTypeShape(context, std::size_t{kBlockYScale}, &info));
    return ort::read(api, info).type == ort::kFloat ? ort::kUint8 : ort::kFloat;
  }
};

}  // namespace

std::vector<const ort::CustomOp*> block_sparse_ops(const ort::Api& api, bool infers_shapes) {
  std::vector<Types> all;
  for (ort::ElementType y : {ort::kFloat, ort::kUint8}) {
    all.push_back({ort::kFloat, ort::kInt8, y});
    all.push_back({ort::kUint8, ort::kInt8, y});
    all.push_back({ort::kFloat, ort::kFloat, y});
  }
  return make_ops<Definition>(api, all, infers_shapes);
}

}  // namespace onnxpress
