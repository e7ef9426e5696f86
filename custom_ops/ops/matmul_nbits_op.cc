#include "ops/matmul_nbits_op.h"

#include <string>

#include "ops/custom_op.h"
#include "ops/nbits_product.h"
#include "ort/ort.h"

namespace onnxpress {
namespace {

enum Input : std::size_t { kA, kB, kScales, kZeroPoints, kBias, kInputs };

NBitsAttributes read_attributes(const ort::Api& api, const ort::KernelInfo* info, const std::string& label) {
  const auto read = [&](const char* name, bool required) {
    std::int64_t value = 0;
    if (ort::Status* status = api.KernelInfoGetAttribute_int64(info, name, &value)) {
      api.ReleaseStatus(status);
      if (required) throw ort::InvalidArgument(label + ": attribute " + name + " is missing");
    }
    return value;
  };
  return {read("K", true), read("N", true), read("bits", true), read("block_size", true),
          read("accuracy_level", false)};
}

class Kernel {
 public:
  Kernel(const ort::Api& api, const ort::KernelInfo* info, const NBitsTypes& types)
      : api_(api), product_(make_product(api, info, types)) {
    std::size_t inputs = 0;
    ort::check(api_, api_.KernelInfo_GetInputCount(info, &inputs));
    if (inputs < 3) product_.reject("needs at least the inputs A, B and scales");
    const ort::Value* constant[kInputs] = {};
    bool all = true;
    for (std::size_t index : {kB, kScales, kZeroPoints}) {
      int is_constant = 0;
      if (index >= inputs) continue;
      ort::check(api_, api_.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &constant[index]));
      if (is_constant == 0) constant[index] = nullptr;
      all = all && (is_constant != 0 || index == kZeroPoints);
    }
    // Zero points that are present but computed at run time make the weight so too; whether they are present shows
    // only then.
    maybe_more_zero_points_ = inputs > kZeroPoints && constant[kZeroPoints] == nullptr;
    if (all) weight_ = pack(product_.weight(constant[kB], constant[kScales], constant[kZeroPoints]), Sequential());
  }

  void compute(ort::KernelContext* context) const {
    const ort::IntraOpPool pool(api_, context);
    std::size_t inputs = 0;
    ort::check(api_, api_.KernelContext_GetInputCount(context, &inputs));
    const auto input = [&](std::size_t index) {
      const ort::Value* value = nullptr;
      if (index < inputs) ort::check(api_, api_.KernelContext_GetInput(context, index, &value));
      return value;
    };
    // A weight that is no constant (one of an outer graph, say) is packed on every call.
    PackedWeight packed;
    const NBitsWeight* weight = &weight_.view;
    const ort::Value* zero_points = maybe_more_zero_points_ ? input(kZeroPoints) : nullptr;
    if (weight_.memory.bytes == nullptr || zero_points != nullptr) {
      packed = pack(product_.weight(input(kB), input(kScales), input(kZeroPoints)), pool);
      weight = &packed.view;
    }
    product_.compute(context, input(kA), *weight, {product_.bias(input(kBias))}, pool);
  }

 private:
  static NBitsProduct make_product(const ort::Api& api, const ort::KernelInfo* info, const NBitsTypes& types) {
    const std::string label = label_of(api, info, "MatMulNBits");
    return NBitsProduct(api, label, read_attributes(api, info, label), types, chosen_isa());
  }

  const ort::Api& api_;
  const NBitsProduct product_;
  PackedWeight weight_;
  bool maybe_more_zero_points_ = false;
};

const ort::Api* runtime = nullptr;  // the shape inference gets none

struct Op : ort::CustomOp {
  NBitsTypes types;
};

const NBitsTypes& types_of(const ort::CustomOp* op) { return static_cast<const Op*>(op)->types; }

ort::ElementType input_type(const ort::CustomOp* op, std::size_t index) {
  const NBitsTypes& types = types_of(op);
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

Op make_op(const NBitsTypes& types, bool infers_shapes) {
  Op op{};
  set_common(op);
  op.GetName = [](const ort::CustomOp*) { return "MatMulNBits"; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const ort::CustomOp*) -> std::size_t { return kInputs; };
  op.GetOutputType = [](const ort::CustomOp* self, std::size_t) { return types_of(self).activation; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, std::size_t index) {
    return index >= kZeroPoints ? ort::kOptional : ort::kRequired;
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
      return ort::guarded(*runtime, [&] { infer_shape(*runtime, context, std::nullopt); });
    };
  }
  op.types = types;
  return op;
}

}  // namespace

std::vector<const ort::CustomOp*> matmul_nbits_ops(const ort::Api& api, bool infers_shapes) {
  runtime = &api;
  // Never destroyed: sessions may outlive the library's unregistration.
  static const auto& ops = *new std::vector<Op>([&] {
    std::vector<Op> all;
    for (ort::ElementType activation : {ort::kFloat, ort::kFloat16}) {
      for (ort::ElementType scale : {ort::kFloat, ort::kFloat16, ort::kBFloat16}) {
        for (ort::ElementType zero_point : {ort::kUint8, scale})
          all.push_back(make_op({activation, scale, zero_point}, infers_shapes));
      }
    }
    return all;
  }());
  std::vector<const ort::CustomOp*> pointers;
  for (const Op& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace onnxpress
