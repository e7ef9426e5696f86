#include "nbits_node.h"

#include <cstring>
#include <memory>
#include <vector>

#include "shared_weights.h"

namespace onnxpress {
namespace {

// What one of the C functions that hand out a string says.
template <class Get>
std::string text(const ort::Api& api, const Get& get) {
  const char* value = nullptr;
  ort::check(api, get(&value));
  return value != nullptr ? value : "";
}

std::string domain_of(const ort::Api& api, const ort::Node* node) {
  return text(api, [&](const char** out) { return api.Node_GetDomain(node, out); });
}

std::string op_type_of(const ort::Api& api, const ort::Node* node) {
  return text(api, [&](const char** out) { return api.Node_GetOperatorType(node, out); });
}

std::string name_of(const ort::Api& api, const ort::Node* node) {
  return text(api, [&](const char** out) { return api.Node_GetName(node, out); });
}

std::string name_of(const ort::Api& api, const ort::ValueInfo* value) {
  return text(api, [&](const char** out) { return api.GetValueInfoName(value, out); });
}

std::vector<const ort::ValueInfo*> inputs_of(const ort::Api& api, const ort::Node* node) {
  std::size_t count = 0;
  ort::check(api, api.Node_GetNumInputs(node, &count));
  std::vector<const ort::ValueInfo*> inputs(count);
  ort::check(api, api.Node_GetInputs(node, inputs.data(), count));
  return inputs;
}

ort::ElementType type_of(const ort::Api& api, const ort::ValueInfo* value) {
  const ort::TypeInfo* type = nullptr;
  ort::check(api, api.GetValueInfoTypeInfo(value, &type));
  const ort::TensorInfo* tensor = nullptr;
  ort::check(api, api.CastTypeInfoToTensorInfo(type, &tensor));
  ort::ElementType element = ort::kUndefined;
  if (tensor != nullptr) ort::check(api, api.GetTensorElementType(tensor, &element));
  return element;
}

// The value of a constant of this graph, null for anything else.
const ort::Value* constant(const ort::Api& api, const ort::ValueInfo* value) {
  bool is_constant = false, is_outer = false;
  ort::check(api, api.ValueInfo_IsConstantInitializer(value, &is_constant));
  ort::check(api, api.ValueInfo_IsFromOuterScope(value, &is_outer));
  if (!is_constant || is_outer) return nullptr;
  const ort::Value* constant = nullptr;
  ort::check(api, api.ValueInfo_GetInitializerValue(value, &constant));
  return constant;
}

class Reader {
 public:
  Reader(const ort::Api& api, const ort::Node* node) : api_(api), node_(node), inputs_(inputs_of(api, node)) {
    ours_ = domain_of(api, node) == "onnxpress";
    result_.label =
        std::string(ours_ ? "onnxpress" : "com.microsoft") + "::MatMulNBits node '" + name_of(api, node) + "'";
  }

  NBitsNode read() {
    read_attributes();
    result_.a = name_of(api_, required(0, "A"));
    result_.types.activation = type_of(api_, inputs_[0]);
    result_.codes = required_constant(1, "B");
    result_.scales = required_constant(2, "scales");
    result_.types.scale = type_of(api_, inputs_[2]);
    result_.types.zero_point = ort::kUint8;
    if (present(3)) {
      result_.zero_points = required_constant(3, "zero_points");
      result_.types.zero_point = type_of(api_, inputs_[3]);
    }
    if (!ours_ && present(4)) reject("g_idx is not supported");
    const std::size_t bias = ours_ ? 4 : 5;
    if (present(bias)) {
      result_.constant_bias = constant(api_, inputs_[bias]);
      if (result_.constant_bias == nullptr) result_.bias = name_of(api_, inputs_[bias]);
    }
    check_types(bias);
    return result_;
  }

 private:
  [[noreturn]] void reject(const std::string& reason) const {
    throw ort::InvalidArgument(result_.label + ": " + reason);
  }

  bool present(std::size_t index) const {
    return index < inputs_.size() && inputs_[index] != nullptr && !name_of(api_, inputs_[index]).empty();
  }

  const ort::ValueInfo* required(std::size_t index, const char* name) const {
    if (!present(index)) reject(std::string("input ") + name + " is missing");
    return inputs_[index];
  }

  const ort::Value* required_constant(std::size_t index, const char* name) const {
    const ort::Value* value = constant(api_, required(index, name));
    if (value == nullptr) reject(std::string("input ") + name + " is no constant of this graph");
    return value;
  }

  std::int64_t attribute(const char* name, bool required) const {
    const ort::OpAttr* attribute = nullptr;
    if (ort::Status* status = api_.Node_GetAttributeByName(node_, name, &attribute)) api_.ReleaseStatus(status);
    std::int64_t value = 0;
    if (attribute != nullptr) {
      std::size_t size = 0;
      ort::check(api_, api_.ReadOpAttr(attribute, ort::kAttrInt, &value, sizeof value, &size));
    } else if (required) {
      reject(std::string("attribute ") + name + " is missing");
    }
    return value;
  }

  void read_attributes() {
    result_.attributes = {attribute("K", true), attribute("N", true), attribute("bits", ours_),
                          attribute("block_size", true), attribute("accuracy_level", false)};
    if (!ours_ && result_.attributes.bits == 0) result_.attributes.bits = 4;  // the default of com.microsoft
    if (!ours_ && attribute("weight_prepacked", false) != 0) reject("weight_prepacked is not supported");
  }

  void check_types(std::size_t bias) const {
    const NBitsTypes& t = result_.types;
    if (t.activation != ort::kFloat && t.activation != ort::kFloat16) reject("input A is neither float32 nor float16");
    if (t.scale != ort::kFloat && t.scale != ort::kFloat16 && t.scale != ort::kBFloat16) {
      reject("scales are neither float32, float16 nor bfloat16");
    }
    if (t.zero_point != ort::kUint8 && t.zero_point != t.scale)
      reject("zero_points are neither uint8 nor of the type of scales");
    if (type_of(api_, inputs_[1]) != ort::kUint8) reject("input B is not uint8");
    if (present(bias) && type_of(api_, inputs_[bias]) != t.activation) reject("bias is not of the type of A");
  }

  const ort::Api& api_;
  const ort::Node* node_;
  const std::vector<const ort::ValueInfo*> inputs_;
  bool ours_;
  NBitsNode result_;
};

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

std::size_t place_of(const ort::Api& api, const ort::Node* fused, const std::string& name) {
  const std::vector<const ort::ValueInfo*> inputs = inputs_of(api, fused);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i] != nullptr && name_of(api, inputs[i]) == name) return i;
  }
  throw std::runtime_error("onnxpress: the compiled node has no input " + name);
}

struct CompiledNBits : ort::NodeComputeInfo {
  CompiledNBits(const ort::Api& api, const NBitsNode& node, const ort::Node* fused)
      : NodeComputeInfo{}, runtime(api), product(api, node.label, node.attributes, node.types) {
    weight = share(pack(product.weight(node.codes, node.scales, node.zero_points), Sequential()));
    if (const void* values = product.bias(node.constant_bias)) {
      const std::size_t size = node.types.activation == ort::kFloat ? 4 : 2;
      constant_bias.resize(static_cast<std::size_t>(node.attributes.N) * size);
      std::memcpy(constant_bias.data(), values, constant_bias.size());
    }
    a_place = place_of(api, fused, node.a);
    bias_place = node.bias.empty() ? kNone : place_of(api, fused, node.bias);
    ort_version_supported = ort::kApiVersion;
    CreateState = [](ort::NodeComputeInfo* self, ort::NodeComputeContext*, void** state) -> ort::Status* {
      *state = self;  // all that a run needs is constant
      return nullptr;
    };
    Compute = [](ort::NodeComputeInfo* self, void*, ort::KernelContext* context) {
      const auto& compiled = *static_cast<const CompiledNBits*>(self);
      return ort::guarded(compiled.runtime, [&] { compiled.run(context); });
    };
    ReleaseState = [](ort::NodeComputeInfo*, void*) {};
  }

  void run(ort::KernelContext* context) const {
    const ort::IntraOpPool pool(runtime, context);
    const auto input = [&](std::size_t place) {
      const ort::Value* value = nullptr;
      ort::check(runtime, runtime.KernelContext_GetInput(context, place, &value));
      return value;
    };
    const void* bias = constant_bias.empty() ? nullptr : constant_bias.data();
    if (bias_place != kNone) bias = product.bias(input(bias_place));
    product.compute(context, input(a_place), weight->view, bias, pool);
  }

  const ort::Api& runtime;
  const NBitsProduct product;
  std::shared_ptr<const PackedWeight> weight;
  std::vector<std::uint8_t> constant_bias;
  std::size_t a_place = 0, bias_place = kNone;
};

}  // namespace

bool is_nbits_node(const ort::Api& api, const ort::Node* node) {
  if (op_type_of(api, node) != "MatMulNBits") return false;
  const std::string domain = domain_of(api, node);
  return domain == "com.microsoft" || domain == "onnxpress";
}

NBitsNode read_nbits_node(const ort::Api& api, const ort::Node* node) {
  NBitsNode read = Reader(api, node).read();
  // What compiling would object to, found while the node can still be left to others.
  const NBitsProduct product(api, read.label, read.attributes, read.types);
  product.weight(read.codes, read.scales, read.zero_points);
  product.bias(read.constant_bias);
  return read;
}

ort::NodeComputeInfo* compile_nbits_node(const ort::Api& api, const NBitsNode& node, const ort::Node* fused) {
  return new CompiledNBits(api, node, fused);
}

void release_nbits_node(ort::NodeComputeInfo* compiled) { delete static_cast<CompiledNBits*>(compiled); }

}  // namespace onnxpress
