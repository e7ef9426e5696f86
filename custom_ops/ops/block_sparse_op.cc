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

std::string read_text(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
  std::size_t size = 0;
  // The first call only asks for the size, which ONNX Runtime reports as an error of the empty buffer or not at all.
  if (ort::Status* status = api.KernelInfoGetAttribute_string(info, name, static_cast<char*>(nullptr), &size)) {
    api.ReleaseStatus(status);
  }
  std::string text(size, '\0');
  if (size != 0) ort::check(api, api.KernelInfoGetAttribute_string(info, name, text.data(), &size));
  while (!text.empty() && text.back() == '\0') text.pop_back();
  return text;
}

BlockSparseProduct make_product(const ort::Api& api, const ort::KernelInfo* info, const Types& types) {
  const std::string label = label_of(api, info, "BlockSparseMatMul");
  const auto read = [&](const char* name) {
    std::int64_t value = 0;
    if (ort::Status* status = api.KernelInfoGetAttribute_int64(info, name, &value)) {
      api.ReleaseStatus(status);
      throw ort::InvalidArgument(label + ": attribute " + name + " is missing");
    }
    return value;
  };
  const BlockSparseAttributes attributes{read("K"), read("N"), read("block_k"), read("block_n"),
                                         read_text(api, info, "activation")};
  std::size_t inputs = 0;
  ort::check(api, api.KernelInfo_GetInputCount(info, &inputs));
  const ort::Value* constants[kBlockInputs] = {};
  for (std::size_t index = kBlockValues; index < inputs && index < kBlockInputs; ++index) {
    int is_constant = 0;
    ort::check(api, api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &constants[index]));
    if (is_constant == 0) constants[index] = nullptr;
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

const ort::Api* runtime = nullptr;  // the shape inference gets none

// uint8 where the node says how to round the output.
ort::ElementType output_type(ort::ShapeInferContext* context) {
  std::size_t inputs = 0;
  ort::check(*runtime, runtime->ShapeInferContext_GetInputCount(context, &inputs));
  if (inputs <= kBlockYScale) return ort::kFloat;
  ort::TensorInfo* info = nullptr;  // belongs to the context
  ort::check(*runtime, runtime->ShapeInferContext_GetInputTypeShape(context, std::size_t{kBlockYScale}, &info));
  return ort::read(*runtime, info).type == ort::kFloat ? ort::kUint8 : ort::kFloat;
}

struct Op : ort::CustomOp {
  Types types;
};

const Types& types_of(const ort::CustomOp* op) { return static_cast<const Op*>(op)->types; }

// An op with a float32 output has a y_scale of a type that no valid node has: ONNX Runtime takes the type of an output
// from the first op whose inputs fit.
ort::ElementType input_type(const ort::CustomOp* op, std::size_t index) {
  if (index == kBlockYScale && types_of(op).y == ort::kFloat) return ort::kInt64;
  switch (index) {
    case kBlockA:
      return types_of(op).a;
    case kBlockValues:
      return types_of(op).values;
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

Op make_op(const Types& types, bool infers_shapes) {
  Op op{};
  set_common(op);
  op.types = types;
  op.GetName = [](const ort::CustomOp*) { return "BlockSparseMatMul"; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const ort::CustomOp*) -> std::size_t { return kBlockInputs; };
  op.GetOutputType = [](const ort::CustomOp* self, std::size_t) { return types_of(self).y; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, std::size_t index) {
    return index >= kBlockScales ? ort::kOptional : ort::kRequired;
  };
  op.CreateKernelV2 = [](const ort::CustomOp* self, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    return ort::guarded(*api, [&] { *kernel = new Kernel(*api, info, types_of(self)); });
  };
  op.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) {
    return ort::guarded(*runtime, [&] { static_cast<const Kernel*>(kernel)->compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  if (infers_shapes) {
    op.InferOutputShapeFn = [](const ort::CustomOp*, ort::ShapeInferContext* context) {
      return ort::guarded(*runtime, [&] { infer_shape(*runtime, context, output_type(context)); });
    };
  }
  return op;
}

}  // namespace

std::vector<const ort::CustomOp*> block_sparse_ops(const ort::Api& api, bool infers_shapes) {
  runtime = &api;
  // Never destroyed: sessions may outlive the library's unregistration.
  static const auto& ops = *new std::vector<Op>([&] {
    std::vector<Op> all;
    for (ort::ElementType y : {ort::kFloat, ort::kUint8}) {
      all.push_back(make_op({ort::kFloat, ort::kInt8, y}, infers_shapes));
      all.push_back(make_op({ort::kUint8, ort::kInt8, y}, infers_shapes));
      all.push_back(make_op({ort::kFloat, ort::kFloat, y}, infers_shapes));
    }
    return all;
  }());
  std::vector<const ort::CustomOp*> pointers;
  for (const Op& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace onnxpress
