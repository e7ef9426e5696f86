#include "ops/matmul_nbits_op.h"

#include <atomic>
#include <memory>
#include <string>

#include "kernels/bit_planes.h"
#include "kernels/matmul_nbits.h"
#include "ort/ort.h"

namespace onnxpress {
namespace {

enum Input : std::size_t { kA, kB, kScales, kZeroPoints, kBias, kInputs };

// Codes of a weight beyond this could overflow the sizes computed from them.
constexpr std::int64_t kMostElements = std::int64_t{1} << 40;

struct Attributes {
  std::int64_t K = 0, N = 0, bits = 0, block_size = 0, accuracy_level = 0;
};

// What each message begins with: the op and the node that the user can look for.
class Node {
 public:
  Node(const ort::Api& api, const ort::KernelInfo* info) {
    std::size_t size = 0;
    // The first call only asks for the size, which ONNX Runtime reports as an error of the empty buffer or not at all.
    if (ort::Status* status = api.KernelInfo_GetNodeName(info, static_cast<char*>(nullptr), &size)) {
      api.ReleaseStatus(status);
    }
    std::string name(size, '\0');
    if (size != 0) ort::check(api, api.KernelInfo_GetNodeName(info, name.data(), &size));
    while (!name.empty() && name.back() == '\0') name.pop_back();
    prefix_ = "onnxpress::MatMulNBits node '" + name + "': ";
  }

  [[noreturn]] void reject(const std::string& what) const { throw ort::InvalidArgument(prefix_ + what); }

 private:
  std::string prefix_;
};

Attributes read_attributes(const ort::Api& api, const ort::KernelInfo* info, const Node& node) {
  const auto read = [&](const char* name, bool required) {
    std::int64_t value = 0;
    if (ort::Status* status = api.KernelInfoGetAttribute_int64(info, name, &value)) {
      api.ReleaseStatus(status);
      if (required) node.reject(std::string("attribute ") + name + " is missing");
    }
    return value;
  };
  const Attributes a{read("K", true), read("N", true), read("bits", true), read("block_size", true),
                     read("accuracy_level", false)};
  if (a.bits < 2 || a.bits > 8) node.reject("bits is " + std::to_string(a.bits) + ", must be 2 to 8");
  if (a.block_size < 16 || a.block_size > 256 || (a.block_size & (a.block_size - 1)) != 0) {
    node.reject("block_size is " + std::to_string(a.block_size) + ", must be a power of two from 16 to 256");
  }
  if (a.K < 1 || a.N < 1 || a.K > kMostElements || a.N > kMostElements / a.K) {
    node.reject("K is " + std::to_string(a.K) + " and N is " + std::to_string(a.N) + ", must be positive sizes");
  }
  if (a.accuracy_level < 0 || a.accuracy_level > 4) {
    node.reject("accuracy_level is " + std::to_string(a.accuracy_level) + ", must be 0 to 4");
  }
  return a;
}

struct Variant {
  ort::ElementType activation, scale, zero_point;
};

// ONNX Runtime's tensors as the packer wants them, with every size checked.
class WeightReader {
 public:
  WeightReader(const ort::Api& api, const Node& node, const Attributes& attributes, const Variant& types)
      : api_(api), node_(node), a_(attributes), types_(types) {}

  NBitsSource read(const ort::Value* codes, const ort::Value* scales, const ort::Value* zero_points) const {
    NBitsSource source;
    source.K = a_.K;
    source.N = a_.N;
    source.bits = static_cast<int>(a_.bits);
    source.block_size = a_.block_size;
    source.scale_type = types_.scale == ort::kFloat16    ? ScaleType::kFloat16
                        : types_.scale == ort::kBFloat16 ? ScaleType::kBFloat16
                                                         : ScaleType::kFloat32;
    const std::int64_t blocks = source.blocks();
    source.codes = static_cast<const std::uint8_t*>(checked(codes, "B", {a_.N, blocks, a_.block_size * a_.bits / 8},
                                                            {a_.N * blocks * a_.block_size * a_.bits / 8}));
    source.scales = checked(scales, "scales", {a_.N, blocks}, {a_.N * blocks});
    if (zero_points != nullptr && types_.zero_point == ort::kUint8) {
      const std::int64_t bytes = packed_bytes(blocks, source.bits);
      source.zero_points =
          static_cast<const std::uint8_t*>(checked(zero_points, "zero_points", {a_.N, bytes}, {a_.N * bytes}));
    } else if (zero_points != nullptr) {
      source.float_zero_points = checked(zero_points, "zero_points", {a_.N, blocks}, {a_.N * blocks});
    }
    return source;
  }

 private:
  // The shape in full, or flat.
  const void* checked(const ort::Value* value, const char* name, const std::vector<std::int64_t>& shape,
                      const std::vector<std::int64_t>& flat) const {
    if (value == nullptr) node_.reject(std::string("input ") + name + " is missing");
    const std::vector<std::int64_t> dims = ort::type_and_shape(api_, value).dims;
    if (dims != shape && dims != flat) {
      node_.reject(std::string("input ") + name + " has shape " + ort::to_string(dims) + ", but K=" +
                   std::to_string(a_.K) + ", N=" + std::to_string(a_.N) + ", bits=" + std::to_string(a_.bits) +
                   ", block_size=" + std::to_string(a_.block_size) + " need " + ort::to_string(shape));
    }
    return ort::data(api_, value);
  }

  const ort::Api& api_;
  const Node& node_;
  const Attributes& a_;
  const Variant& types_;
};

class Kernel {
 public:
  Kernel(const ort::Api& api, const ort::KernelInfo* info, const Variant& types)
      : api_(api), node_(api, info), attributes_(read_attributes(api, info, node_)), types_(types), isa_(chosen_isa()) {
    std::size_t inputs = 0;
    ort::check(api_, api_.KernelInfo_GetInputCount(info, &inputs));
    if (inputs < 3) node_.reject("needs at least the inputs A, B and scales");
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
    if (all) weight_ = pack_weight(constant[kB], constant[kScales], constant[kZeroPoints], Sequential());
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
    if (weight_.memory == nullptr || zero_points != nullptr) {
      packed = pack_weight(input(kB), input(kScales), input(kZeroPoints), pool);
      weight = &packed.view;
    }

    const ort::TypeAndShape a = ort::type_and_shape(api_, input(kA));
    if (a.dims.empty() || a.dims.back() != attributes_.K) {
      node_.reject("input A has shape " + ort::to_string(a.dims) +
                   ", its last size must be K=" + std::to_string(attributes_.K));
    }
    std::vector<std::int64_t> shape = a.dims;
    shape.back() = attributes_.N;
    std::int64_t M = 1;
    for (std::size_t axis = 0; axis + 1 < a.dims.size(); ++axis) M *= a.dims[axis];
    const ort::Value* bias = input(kBias);
    if (bias != nullptr && ort::type_and_shape(api_, bias).dims != std::vector<std::int64_t>{attributes_.N}) {
      node_.reject("input bias has shape " + ort::to_string(ort::type_and_shape(api_, bias).dims) +
                   ", must be [N=" + std::to_string(attributes_.N) + "]");
    }
    ort::Value* y = nullptr;
    ort::check(api_, api_.KernelContext_GetOutput(context, std::size_t{0}, shape.data(), shape.size(), &y));
    if (M == 0) return;
    multiply(ort::data(api_, input(kA)), M, *weight, bias != nullptr ? ort::data(api_, bias) : nullptr,
             const_cast<void*>(ort::data(api_, y)), pool);
  }

 private:
  PackedWeight pack_weight(const ort::Value* codes, const ort::Value* scales, const ort::Value* zero_points,
                           const Parallel& parallel) const {
    const WeightReader reader(api_, node_, attributes_, types_);
    return pack(reader.read(codes, scales, zero_points), parallel);
  }

  void multiply(const void* a, std::int64_t M, const NBitsWeight& weight, const void* bias, void* y,
                const Parallel& pool) const {
    const Compute compute = attributes_.accuracy_level == 4 ? Compute::kInt8 : Compute::kFloat32;
    if (types_.activation == ort::kFloat) {
      matmul_nbits({static_cast<const float*>(a), M, &weight, static_cast<const float*>(bias), static_cast<float*>(y)},
                   compute, isa_, pool);
      return;
    }
    // float16 is a format of storage here: sums are float32.
    const std::int64_t in = M * weight.K, out = M * weight.N;
    std::vector<float> floats(static_cast<std::size_t>(in + out + weight.N));
    float* result = floats.data() + in;
    float* added = result + out;
    convert(static_cast<const std::uint16_t*>(a), floats.data(), in, isa_);
    if (bias != nullptr) convert(static_cast<const std::uint16_t*>(bias), added, weight.N, isa_);
    matmul_nbits({floats.data(), M, &weight, bias != nullptr ? added : nullptr, result}, compute, isa_, pool);
    convert(result, static_cast<std::uint16_t*>(y), out, isa_);
  }

  const ort::Api& api_;
  const Node node_;
  const Attributes attributes_;
  const Variant types_;
  const Isa isa_;
  PackedWeight weight_;
  bool maybe_more_zero_points_ = false;
};

// Shape of the output: that of A with the last size replaced by N. Names of symbolic sizes survive.
void infer_shape(const ort::Api& api, ort::ShapeInferContext* context) {
  ort::TensorInfo* a = nullptr;  // belongs to the context
  ort::check(api, api.ShapeInferContext_GetInputTypeShape(context, std::size_t{0}, &a));
  ort::TypeAndShape shape = ort::read(api, a);
  if (shape.dims.empty()) return;
  std::vector<const char*> names(shape.dims.size());
  ort::check(api, api.GetSymbolicDimensions(a, names.data(), names.size()));
  const ort::OpAttr* attribute = nullptr;
  ort::check(api, api.ShapeInferContext_GetAttribute(context, "N", &attribute));
  std::size_t size = 0;
  ort::check(api, api.ReadOpAttr(attribute, ort::kAttrInt, &shape.dims.back(), sizeof(std::int64_t), &size));
  names.back() = "";
  // A size that is unknown and has no name would come out as the number -1; a name that nobody else has says the same.
  static std::atomic<unsigned> unknowns{0};
  std::vector<std::string> invented(names.size());
  for (std::size_t axis = 0; axis < names.size(); ++axis) {
    if (shape.dims[axis] >= 0 || (names[axis] != nullptr && *names[axis] != '\0')) continue;
    invented[axis] = "onnxpress_unknown_" + std::to_string(unknowns++);
    names[axis] = invented[axis].c_str();
  }

  ort::TensorInfo* y = nullptr;
  ort::check(api, api.CreateTensorTypeAndShapeInfo(&y));
  struct Release {
    const ort::Api& api;
    ort::TensorInfo* info;
    ~Release() { api.ReleaseTensorTypeAndShapeInfo(info); }
  } release{api, y};
  ort::check(api, api.SetTensorElementType(y, shape.type));
  ort::check(api, api.SetDimensions(y, shape.dims.data(), shape.dims.size()));
  ort::check(api, api.SetSymbolicDimensions(y, names.data(), names.size()));
  ort::check(api, api.ShapeInferContext_SetOutputTypeShape(context, std::size_t{0}, y));
}

const ort::Api* runtime = nullptr;  // the shape inference gets none

struct Op : ort::CustomOp {
  Variant types;
};

const Variant& types_of(const ort::CustomOp* op) { return static_cast<const Op*>(op)->types; }

ort::ElementType input_type(const ort::CustomOp* op, std::size_t index) {
  const Variant& types = types_of(op);
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

Op make_op(const Variant& types, bool infers_shapes) {
  Op op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp*) { return "MatMulNBits"; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const ort::CustomOp*) -> std::size_t { return kInputs; };
  op.GetOutputType = [](const ort::CustomOp* self, std::size_t) { return types_of(self).activation; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> std::size_t { return 1; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, std::size_t index) {
    return index >= kZeroPoints ? ort::kOptional : ort::kRequired;
  };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, std::size_t) { return ort::kRequired; };
  op.GetInputMemoryType = [](const ort::CustomOp*, std::size_t) { return 0; };
  const auto zero = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicInputMinArity = zero;
  op.GetVariadicInputHomogeneity = zero;
  op.GetVariadicOutputMinArity = zero;
  op.GetVariadicOutputHomogeneity = zero;
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
  op.CreateKernelV2 = [](const ort::CustomOp* self, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    return ort::guarded(*api, [&] { *kernel = new Kernel(*api, info, types_of(self)); });
  };
  op.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) {
    return ort::guarded(*runtime, [&] { static_cast<const Kernel*>(kernel)->compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  if (infers_shapes) {
    op.InferOutputShapeFn = [](const ort::CustomOp*, ort::ShapeInferContext* context) {
      return ort::guarded(*runtime, [&] { infer_shape(*runtime, context); });
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
