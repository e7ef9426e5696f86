#include "activations.h"

#include <cmath>
#include <string>
#include <utility>

namespace onnxpress {
namespace {

// The only reader of a value, if it is this standard op and nobody has it yet.
std::optional<GraphNode> next(const Claims& claims, const GraphValue& value, const char* op_type) {
  const std::optional<GraphNode> reader = claims.free_reader(value);
  return reader && reader->is(op_type) ? reader : std::nullopt;
}

bool reads(const GraphNode& node, std::size_t index, const GraphValue& value) {
  const std::optional<GraphValue> input = node.input(index);
  return input && input->name() == value.name();
}

// Whether a node of two inputs reads both values, in any order.
bool reads_both(const GraphNode& node, const GraphValue& a, const GraphValue& b) {
  return (reads(node, 0, a) && reads(node, 1, b)) || (reads(node, 0, b) && reads(node, 1, a));
}

// Whether an input is this constant, to the last bit but one, and does not broadcast what it meets.
bool is_number(const Claims& claims, const GraphNode& node, std::size_t index, double number) {
  const std::optional<GraphValue> input = node.input(index);
  const ort::Value* constant = input ? input->constant() : nullptr;
  if (constant == nullptr) return false;
  const ort::TypeAndShape type = ort::type_and_shape(claims.api, constant);
  const bool single = type.dims.empty() || type.dims == std::vector<std::int64_t>{1};
  if (type.type != ort::kFloat || !single) return false;
  return std::abs(*static_cast<const float*>(ort::data(claims.api, constant)) / number - 1) < 1.2e-7;
}

// Whether a node of two inputs joins the value and this constant, in any order.
bool joins(const Claims& claims, const GraphNode& node, const GraphValue& value, double number) {
  return (reads(node, 0, value) && is_number(claims, node, 1, number)) ||
         (reads(node, 1, value) && is_number(claims, node, 0, number));
}

std::optional<Activation> activation_of(const GraphNode& node) {
  if (node.is("Relu")) return Activation::kRelu;
  if (node.is("Gelu")) {
    const std::string approximate = node.text_attribute("approximate", "none");
    if (approximate == "none") return Activation::kGelu;
    if (approximate == "tanh") return Activation::kGeluTanh;
  }
  if (node.is("com.microsoft", "Gelu")) return Activation::kGelu;
  if (node.is("com.microsoft", "FastGelu") && !node.input(1)) return Activation::kGeluTanh;
  if (node.is("com.microsoft", "QuickGelu") && node.float_attribute("alpha", 1.702f) == 1.0f) return Activation::kSilu;
  return std::nullopt;
}

// Sigmoid(x) * x
std::optional<FoundActivation> find_silu(const Claims& claims, const GraphValue& x, const GraphNode& sigmoid,
                                         const GraphNode& multiply) {
  if (!sigmoid.is("Sigmoid") || !multiply.is("Mul") || !reads_both(multiply, x, sigmoid.output())) return std::nullopt;
  if (claims.graph.only_reader(sigmoid.output()) != multiply.get()) return std::nullopt;
  return FoundActivation{Activation::kSilu, {sigmoid.get(), multiply.get()}, multiply};
}

// x, 1 + Erf(x / sqrt(2)) and 0.5, multiplied in any order: 0.5 makes no difference to the rounding.
std::optional<FoundActivation> find_gelu(const Claims& claims, const GraphValue& x, const GraphNode& divide,
                                         const GraphNode& multiply) {
  if (!divide.is("Div") || !multiply.is("Mul") || !reads(divide, 0, x)) return std::nullopt;
  if (!is_number(claims, divide, 1, std::sqrt(2.0))) return std::nullopt;
  const std::optional<GraphNode> erf = next(claims, divide.output(), "Erf");
  if (!erf) return std::nullopt;
  const std::optional<GraphNode> add = next(claims, erf->output(), "Add");
  if (!add || !joins(claims, *add, erf->output(), 1)) return std::nullopt;
  const GraphValue sum = add->output();
  const std::optional<GraphNode> second = next(claims, sum, "Mul");
  if (!second) return std::nullopt;

  std::vector<const ort::Node*> nodes = {divide.get(), erf->get(), add->get(), multiply.get()};
  if (second->get() == multiply.get()) {  // (x * sum) * 0.5
    const std::optional<GraphNode> last = next(claims, multiply.output(), "Mul");
    if (!reads_both(multiply, x, sum) || !last || !joins(claims, *last, multiply.output(), 0.5)) return std::nullopt;
    nodes.push_back(last->get());
    return FoundActivation{Activation::kGelu, std::move(nodes), *last};
  }
  nodes.push_back(second->get());
  const bool halves_x = joins(claims, multiply, x, 0.5) && reads_both(*second, multiply.output(), sum) &&
                        claims.graph.only_reader(multiply.output()) == second->get();
  if (halves_x) return FoundActivation{Activation::kGelu, std::move(nodes), *second};  // (x * 0.5) * sum
  const bool halves_sum = joins(claims, *second, sum, 0.5) && reads_both(multiply, x, second->output()) &&
                          claims.graph.only_reader(second->output()) == multiply.get();
  if (halves_sum) return FoundActivation{Activation::kGelu, std::move(nodes), multiply};  // x * (sum * 0.5)
  return std::nullopt;
}

// What a bias was added to, or the value itself.
GraphValue before_bias(const Claims& claims, const GraphValue& value) {
  const ort::Node* producer = claims.graph.producer(value);
  if (producer == nullptr) return value;
  const GraphNode add(claims.api, producer);
  if (!add.is("Add")) return value;
  for (const std::size_t bias : {0u, 1u}) {
    const std::optional<GraphValue> added = add.input(bias), sum = add.input(1 - bias);
    const ort::Value* constant = added ? added->constant() : nullptr;
    if (constant != nullptr && sum && ort::type_and_shape(claims.api, constant).dims.size() <= 1) return *sum;
  }
  return value;
}

// Whether a value is what comes of multiplying `a` by a matrix, with a bias or without.
bool is_product_of(const Claims& claims, const GraphValue& value, const std::string& a) {
  const ort::Node* producer = claims.graph.producer(before_bias(claims, value));
  if (producer == nullptr) return false;
  const GraphNode node(claims.api, producer);
  const std::optional<GraphValue> first = node.input(0), second = node.input(1);
  if (!first || !second || first->name() != a) return false;
  return node.is("com.microsoft", "MatMulNBits") || node.is("onnxpress", "MatMulNBits") ||
         (node.is("MatMul") && second->type().dims.size() == 2);
}

// Whether two values have the same shape for certain. The first comes of multiplying `a` by a matrix: so may the
// second, in models whose other sizes have no names.
bool same_shape(const Claims& claims, const GraphValue& value, const GraphValue& other, const std::string& a) {
  const ValueType one = value.type(), two = other.type();
  if (!one.has_shape || one.dims.size() != two.dims.size() || !one.dims.back().equals(two.dims.back())) return false;
  return is_product_of(claims, other, a) || one.same_shape(two);
}

}  // namespace

std::optional<FoundActivation> find_activation(const Claims& claims, const GraphValue& value) {
  const std::vector<const ort::Node*> readers = claims.graph.readers(value);
  for (const ort::Node* reader : readers) {
    if (!claims.is_free(reader)) return std::nullopt;
  }
  if (readers.size() == 1) {
    const GraphNode node(claims.api, readers[0]);
    const std::optional<Activation> activation = activation_of(node);
    if (!activation) return std::nullopt;
    return FoundActivation{*activation, readers, node};
  }
  if (readers.size() != 2 || readers[0] == readers[1]) return std::nullopt;
  for (const std::size_t first : {0u, 1u}) {
    const GraphNode one(claims.api, readers[first]), other(claims.api, readers[1 - first]);
    if (auto found = find_silu(claims, value, one, other)) return found;
    if (auto found = find_gelu(claims, value, one, other)) return found;
  }
  return std::nullopt;
}

std::optional<FoundGate> find_gate(const Claims& claims, const GraphValue& value, const std::string& a) {
  const std::optional<GraphNode> multiply = next(claims, value, "Mul");
  if (!multiply) return std::nullopt;
  const GraphValue factor = multiply->input_beside(value);
  // A constant would not be there at run time.
  if (factor.is_constant() || factor.type().element != ort::kFloat) return std::nullopt;
  if (!claims.compiling && !same_shape(claims, value, factor, a)) return std::nullopt;
  return FoundGate{multiply->get(), factor};
}

}  // namespace onnxpress
