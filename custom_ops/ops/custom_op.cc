#include "ops/custom_op.h"

#include <atomic>

namespace onnxpress {

std::string label_of(const ort::Api& api, const ort::KernelInfo* info, const char* op) {
  std::size_t size = 0;
  // The first call only asks for the size, which ONNX Runtime reports as an error of the empty buffer or not at all.
  if (ort::Status* status = api.KernelInfo_GetNodeName(info, static_cast<char*>(nullptr), &size)) {
    api.ReleaseStatus(status);
  }
  std::string name(size, '\0');
  if (size != 0) ort::check(api, api.KernelInfo_GetNodeName(info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  return std::string("onnxpress::") + op + " node '" + name + "'";
}

std::optional<std::int64_t> number_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
  std::int64_t value = 0;
  if (ort::Status* status = api.KernelInfoGetAttribute_int64(info, name, &value)) {
    api.ReleaseStatus(status);
    return std::nullopt;
  }
  return value;
}

std::optional<float> float_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
  float value = 0;
  if (ort::Status* status = api.KernelInfoGetAttribute_float(info, name, &value)) {
    api.ReleaseStatus(status);
    return std::nullopt;
  }
  return value;
}

std::string text_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
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

std::int64_t required_attribute(const ort::Api& api, const ort::KernelInfo* info, const std::string& label,
                                const char* name) {
  const std::optional<std::int64_t> value = number_attribute(api, info, name);
  if (!value) throw ort::InvalidArgument(label + ": attribute " + name + " is missing");
  return *value;
}

const ort::Value* constant_input(const ort::Api& api, const ort::KernelInfo* info, std::size_t index) {
  std::size_t inputs = 0;
  ort::check(api, api.KernelInfo_GetInputCount(info, &inputs));
  if (index >= inputs) return nullptr;
  const ort::Value* value = nullptr;
  int is_constant = 0;
  ort::check(api, api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  return is_constant != 0 ? value : nullptr;
}

const void* checked_data(const ort::Api& api, const std::string& label, const char* name, const ort::Value* value,
                         ort::ElementType element, const std::vector<std::int64_t>& shape) {
  const ort::TypeAndShape found = ort::type_and_shape(api, value);
  if (found.type != element) throw ort::InvalidArgument(label + ": input " + name + " has the wrong type");
  if (found.dims != shape) {
    throw ort::InvalidArgument(label + ": input " + name + " has shape " + ort::to_string(found.dims) + ", must be " +
                               ort::to_string(shape));
  }
  return ort::data(api, value);
}

std::optional<Activation> activation_named(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  return std::nullopt;
}

void infer_shape(const ort::Api& api, ort::ShapeInferContext* context, std::optional<ort::ElementType> type,
                 bool keeps) {
  ort::TensorInfo* a = nullptr;  // belongs to the context
  ort::check(api, api.ShapeInferContext_GetInputTypeShape(context, std::size_t{0}, &a));
  ort::TypeAndShape shape = ort::read(api, a);
  if (shape.dims.empty()) return;
  std::vector<const char*> names(shape.dims.size());
  ort::check(api, api.GetSymbolicDimensions(a, names.data(), names.size()));
  if (!keeps) {
    const ort::OpAttr* attribute = nullptr;
    ort::check(api, api.ShapeInferContext_GetAttribute(context, "N", &attribute));
    std::size_t size = 0;
    ort::check(api, api.ReadOpAttr(attribute, ort::kAttrInt, &shape.dims.back(), sizeof(std::int64_t), &size));
    names.back() = "";
  }
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
  ort::check(api, api.SetTensorElementType(y, type.value_or(shape.type)));
  ort::check(api, api.SetDimensions(y, shape.dims.data(), shape.dims.size()));
  ort::check(api, api.SetSymbolicDimensions(y, names.data(), names.size()));
  ort::check(api, api.ShapeInferContext_SetOutputTypeShape(context, std::size_t{0}, y));
}

void set_common(ort::CustomOp& op) {
  op.version = ort::kApiVersion;
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.GetInputMemoryType = [](const ort::CustomOp*, std::size_t) { return 0; };
  const auto zero = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicInputMinArity = zero;
  op.GetVariadicInputHomogeneity = zero;
  op.GetVariadicOutputMinArity = zero;
  op.GetVariadicOutputHomogeneity = zero;
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
}

}  // namespace onnxpress
