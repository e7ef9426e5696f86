#include "graph.h"

#include <algorithm>

namespace onnxpress {
namespace {

// What one of the C functions that hand out a string says.
template <class Get>
std::string text(const ort::Api& api, const Get& get) {
  const char* value = nullptr;
  ort::check(api, get(&value));
  return value != nullptr ? value : "";
}

}  // namespace

bool ValueType::same_shape(const ValueType& other) const {
  return has_shape && std::equal(dims.begin(), dims.end(), other.dims.begin(), other.dims.end(),
                                 [](const Dim& one, const Dim& two) { return one.equals(two); });
}

std::string GraphValue::name() const {
  return text(*api_, [&](const char** out) { return api_->GetValueInfoName(info_, out); });
}

ValueType GraphValue::type() const {
  ValueType result;
  const ort::TypeInfo* info = nullptr;
  ort::check(*api_, api_->GetValueInfoTypeInfo(info_, &info));
  const ort::TensorInfo* tensor = nullptr;
  ort::check(*api_, api_->CastTypeInfoToTensorInfo(info, &tensor));
  if (tensor == nullptr) return result;
  const ort::TypeAndShape read = ort::read(*api_, tensor);
  result.element = read.type;
  result.has_shape = !read.dims.empty();
  std::vector<const char*> names(read.dims.size());
  if (result.has_shape) ort::check(*api_, api_->GetSymbolicDimensions(tensor, names.data(), names.size()));
  for (std::size_t i = 0; i < names.size(); ++i) {
    result.dims.push_back({read.dims[i], names[i] != nullptr ? names[i] : ""});
  }
  return result;
}

bool GraphValue::is_constant() const {
  bool result = false;
  ort::check(*api_, api_->ValueInfo_IsConstantInitializer(info_, &result));
  return result;
}

const ort::Value* GraphValue::constant() const {
  bool is_outer = false;
  ort::check(*api_, api_->ValueInfo_IsFromOuterScope(info_, &is_outer));
  if (!is_constant() || is_outer) return nullptr;
  const ort::Value* constant = nullptr;
  ort::check(*api_, api_->ValueInfo_GetInitializerValue(info_, &constant));
  return constant;
}

GraphNode::GraphNode(const ort::Api& api, const ort::Node* node) : api_(api), node_(node) {
  domain_ = text(api, [&](const char** out) { return api.Node_GetDomain(node, out); });
  if (domain_ == "ai.onnx") domain_.clear();
  op_type_ = text(api, [&](const char** out) { return api.Node_GetOperatorType(node, out); });
  std::size_t count = 0;
  ort::check(api, api.Node_GetNumInputs(node, &count));
  inputs_.resize(count);
  ort::check(api, api.Node_GetInputs(node, inputs_.data(), count));
}

std::string GraphNode::name() const {
  return text(api_, [&](const char** out) { return api_.Node_GetName(node_, out); });
}

std::string GraphNode::label() const {
  return (domain_.empty() ? "" : domain_ + "::") + op_type_ + " node '" + name() + "'";
}

std::optional<GraphValue> GraphNode::input(std::size_t index) const {
  if (index >= inputs_.size() || inputs_[index] == nullptr) return std::nullopt;
  GraphValue value(api_, inputs_[index]);
  if (value.name().empty()) return std::nullopt;
  return value;
}

std::size_t GraphNode::outputs() const {
  std::size_t count = 0;
  ort::check(api_, api_.Node_GetNumOutputs(node_, &count));
  return count;
}

GraphValue GraphNode::output(std::size_t index) const {
  std::size_t count = 0;
  ort::check(api_, api_.Node_GetNumOutputs(node_, &count));
  std::vector<const ort::ValueInfo*> outputs(count);
  ort::check(api_, api_.Node_GetOutputs(node_, outputs.data(), count));
  return GraphValue(api_, outputs.at(index));
}

const ort::OpAttr* GraphNode::find(const char* name) const {
  const ort::OpAttr* attribute = nullptr;
  if (ort::Status* status = api_.Node_GetAttributeByName(node_, name, &attribute)) api_.ReleaseStatus(status);
  return attribute;
}

std::optional<std::int64_t> GraphNode::attribute(const char* name) const {
  const ort::OpAttr* attribute = find(name);
  if (attribute == nullptr) return std::nullopt;
  return number<std::int64_t>(attribute, name, ort::kAttrInt);
}

std::int64_t GraphNode::attribute(const char* name, std::int64_t otherwise) const {
  return attribute(name).value_or(otherwise);
}

float GraphNode::float_attribute(const char* name, float otherwise) const {
  const ort::OpAttr* attribute = find(name);
  if (attribute == nullptr) return otherwise;
  return number<float>(attribute, name, ort::kAttrFloat);
}

// Of our own operators nobody else has checked the types: what is wrong leaves the node, not the whole graph, to
// others.
template <class Number>
Number GraphNode::number(const ort::OpAttr* attribute, const char* name, ort::AttrType type) const {
  Number value{};
  std::size_t size = 0;
  if (ort::Status* status = api_.ReadOpAttr(attribute, type, &value, sizeof value, &size)) {
    api_.ReleaseStatus(status);
    reject(std::string("attribute ") + name + " is of another type");
  }
  return value;
}

std::size_t GraphNode::bytes_of(const ort::OpAttr* attribute, ort::AttrType type) const {
  std::size_t bytes = 0;
  // ONNX Runtime tells the size beside an error.
  if (ort::Status* status = api_.ReadOpAttr(attribute, type, static_cast<void*>(nullptr), std::size_t{0}, &bytes)) {
    api_.ReleaseStatus(status);
  }
  return bytes;
}

std::string GraphNode::text_attribute(const char* name, const std::string& otherwise) const {
  const ort::OpAttr* attribute = find(name);
  if (attribute == nullptr) return otherwise;
  std::size_t bytes = bytes_of(attribute, ort::kAttrString);
  std::string value(bytes, '\0');
  if (!value.empty()) ort::check(api_, api_.ReadOpAttr(attribute, ort::kAttrString, value.data(), bytes, &bytes));
  return value;
}

std::vector<std::int64_t> GraphNode::attributes(const char* name) const {
  const ort::OpAttr* attribute = find(name);
  if (attribute == nullptr) return {};
  std::size_t bytes = bytes_of(attribute, ort::kAttrInts);
  std::vector<std::int64_t> values(bytes / sizeof(std::int64_t));
  if (!values.empty()) ort::check(api_, api_.ReadOpAttr(attribute, ort::kAttrInts, values.data(), bytes, &bytes));
  return values;
}

GraphValue GraphNode::input_beside(const GraphValue& value) const {
  const GraphValue first = required(0, "A");
  return first.name() == value.name() ? required(1, "B") : first;
}

GraphValue GraphNode::required(std::size_t index, const char* name) const {
  const std::optional<GraphValue> value = input(index);
  if (!value) reject(std::string("input ") + name + " is missing");
  return *value;
}

const ort::Value* GraphNode::required_constant(std::size_t index, const char* name) const {
  const ort::Value* value = required(index, name).constant();
  if (value == nullptr) reject(std::string("input ") + name + " is no constant of this graph");
  return value;
}

std::string GraphNode::required_variable(std::size_t index, const char* name) const {
  const GraphValue value = required(index, name);
  if (value.is_constant()) reject(std::string("input ") + name + " is a constant");
  return value.name();
}

GraphIndex::GraphIndex(const ort::Api& api, const ort::Graph* graph) {
  std::size_t count = 0;
  ort::check(api, api.Graph_GetNumNodes(graph, &count));
  nodes_.resize(count);
  ort::check(api, api.Graph_GetNodes(graph, nodes_.data(), count));
  const auto see = [&](const ort::ValueInfo* value, const ort::Node* reader) {
    if (value != nullptr) readers_[GraphValue(api, value).name()].push_back(reader);
  };
  std::vector<const ort::ValueInfo*> values;
  for (const ort::Node* node : nodes_) {
    ort::check(api, api.Node_GetNumInputs(node, &count));
    values.resize(count);
    ort::check(api, api.Node_GetInputs(node, values.data(), count));
    for (const ort::ValueInfo* value : values) see(value, node);

    ort::check(api, api.Node_GetNumImplicitInputs(node, &count));
    values.resize(count);
    ort::check(api, api.Node_GetImplicitInputs(node, values.data(), count));
    for (const ort::ValueInfo* value : values) see(value, nullptr);

    ort::check(api, api.Node_GetNumOutputs(node, &count));
    values.resize(count);
    ort::check(api, api.Node_GetOutputs(node, values.data(), count));
    for (const ort::ValueInfo* value : values) {
      if (value != nullptr) producers_.emplace(GraphValue(api, value).name(), node);
    }
  }
  ort::check(api, api.Graph_GetNumOutputs(graph, &count));
  values.resize(count);
  ort::check(api, api.Graph_GetOutputs(graph, values.data(), count));
  for (const ort::ValueInfo* value : values) see(value, nullptr);
}

const ort::Node* GraphIndex::producer(const GraphValue& value) const {
  const auto at = producers_.find(value.name());
  return at != producers_.end() ? at->second : nullptr;
}

std::vector<const ort::Node*> GraphIndex::readers(const GraphValue& value) const {
  const auto at = readers_.find(value.name());
  if (at == readers_.end()) return {};
  const bool escapes = std::find(at->second.begin(), at->second.end(), nullptr) != at->second.end();
  return escapes ? std::vector<const ort::Node*>() : at->second;
}

const ort::Node* GraphIndex::only_reader(const GraphValue& value) const {
  const std::vector<const ort::Node*> all = readers(value);
  return all.size() == 1 ? all.front() : nullptr;
}

std::size_t input_index(const ort::Api& api, const ort::Node* compiled, const std::string& value) {
  const GraphNode node(api, compiled);
  for (std::size_t i = 0; i < node.inputs(); ++i) {
    const std::optional<GraphValue> input = node.input(i);
    if (input && input->name() == value) return i;
  }
  throw std::runtime_error("onnxpress: the compiled node has no input " + value);
}

std::size_t output_index(const ort::Api& api, const ort::Node* compiled, const std::string& value) {
  const GraphNode node(api, compiled);
  for (std::size_t i = 0; i < node.outputs(); ++i) {
    if (node.output(i).name() == value) return i;
  }
  return kNoInput;
}

}  // namespace onnxpress
