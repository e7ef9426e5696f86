// ONNX Runtime's graph as the execution provider reads it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "ort/ep_abi.h"
#include "ort/ort.h"

namespace onnxpress {

// A size is a number, or -1 with a name that equal sizes share, or -1 without a name.
struct Dim {
  std::int64_t size = -1;
  std::string name;

  bool equals(const Dim& other) const {  // for sure
    return size >= 0 ? size == other.size : !name.empty() && name == other.name;
  }
};

struct ValueType {
  ort::ElementType element = ort::kUndefined;
  bool has_shape = false;  // an unknown rank and a scalar look the same before ONNX Runtime 1.24: false for both
  std::vector<Dim> dims;

  bool same_shape(const ValueType& other) const;  // for sure
};

class GraphValue {
 public:
  GraphValue(const ort::Api& api, const ort::ValueInfo* info) : api_(&api), info_(info) {}

  std::string name() const;
  ValueType type() const;
  // Whether it is a constant, of this graph or of one around it.
  bool is_constant() const;
  // The value of a constant of this graph, null for anything else.
  const ort::Value* constant() const;

 private:
  const ort::Api* api_;
  const ort::ValueInfo* info_;
};

class GraphNode {
 public:
  GraphNode(const ort::Api& api, const ort::Node* node);

  const ort::Node* get() const { return node_; }
  // Domain and operator, with "ai.onnx" for the standard domain.
  bool is(const char* domain, const char* op_type) const { return domain_ == domain && op_type_ == op_type; }
  bool is(const char* op_type) const { return is("", op_type); }
  const std::string& domain() const { return domain_; }
  // What messages begin with.
  std::string label() const;
  std::optional<GraphValue> input(std::size_t index) const;  // none where it is absent
  // Of a node of two inputs, the one that is not this value.
  GraphValue input_beside(const GraphValue& value) const;
  std::size_t inputs() const { return inputs_.size(); }
  std::string name() const;
  std::size_t outputs() const;
  GraphValue output(std::size_t index = 0) const;

  std::int64_t attribute(const char* name, std::int64_t otherwise) const;
  std::optional<std::int64_t> attribute(const char* name) const;
  float float_attribute(const char* name, float otherwise) const;
  std::string text_attribute(const char* name, const std::string& otherwise) const;
  std::vector<std::int64_t> attributes(const char* name) const;  // a list of integers, empty where it is absent

  [[noreturn]] void reject(const std::string& reason) const { throw ort::InvalidArgument(label() + ": " + reason); }
  GraphValue required(std::size_t index, const char* name) const;
  const ort::Value* required_constant(std::size_t index, const char* name) const;
  // A value that comes in at run time, by its name: constants, also of an outer graph, do not.
  std::string required_variable(std::size_t index, const char* name) const;

 private:
  const ort::OpAttr* find(const char* name) const;
  template <class Number>
  Number number(const ort::OpAttr* attribute, const char* name, ort::AttrType type) const;
  std::size_t bytes_of(const ort::OpAttr* attribute, ort::AttrType type) const;

  const ort::Api& api_;
  const ort::Node* node_;
  std::string domain_, op_type_;
  std::vector<const ort::ValueInfo*> inputs_;
};

// Who computes and who reads the values of a graph. ONNX Runtime could be asked, but 1.23 aborts where a reader lies
// outside of the nodes that are being compiled.
class GraphIndex {
 public:
  GraphIndex(const ort::Api& api, const ort::Graph* graph);

  const std::vector<const ort::Node*>& nodes() const { return nodes_; }
  // The node that computes it, null for a graph's input or constant.
  const ort::Node* producer(const GraphValue& value) const;
  // The nodes that read it, one for each time, where nothing else sees it: no graph inside a node, no output. Else
  // empty.
  std::vector<const ort::Node*> readers(const GraphValue& value) const;
  // The node that reads it where there is just one; null otherwise.
  const ort::Node* only_reader(const GraphValue& value) const;

 private:
  std::vector<const ort::Node*> nodes_;
  std::unordered_map<std::string, const ort::Node*> producers_;
  std::unordered_map<std::string, std::vector<const ort::Node*>> readers_;  // null: what is no node of this graph
};

// The index of a value that is no input.
inline constexpr std::size_t kNoInput = static_cast<std::size_t>(-1);

// Which input of a compiled node the value is.
std::size_t input_index(const ort::Api& api, const ort::Node* compiled, const std::string& value);

// Which output of a compiled node the value is; `kNoInput` where it is none, because nothing reads it.
std::size_t output_index(const ort::Api& api, const ort::Node* compiled, const std::string& value);

}  // namespace onnxpress
