#include "dynamic_matmul.h"

#include <algorithm>
#include <utility>

#include "dequantize.h"
#include "int8_plan.h"

namespace onnxpress {
namespace {

std::unique_ptr<Int8Plan> make_plan(const Claims& claims, const GraphNode& node, const Int8Input& input,
                                    const Int8Source& weight, std::vector<const ort::Node*> nodes) {
  auto plan = std::make_unique<Int8Plan>(claims, node, input, weight);
  plan->has_rival = input.is_float() || !input.format.is_signed;
  plan->nodes = std::move(nodes);
  return plan;
}

const ort::Value* optional_constant(const GraphNode& node, std::size_t index, const char* name) {
  return node.input(index) ? node.required_constant(index, name) : nullptr;
}

// Codes as they come in, with a zero point that is constant or comes in too.
Int8Input read_codes(const Claims& claims, const GraphValue& a, const std::optional<GraphValue>& zero_point) {
  Int8Input input{a};
  input.format.is_signed = a.type().element == ort::kInt8;
  const ort::Value* constant = zero_point ? zero_point->constant() : nullptr;
  if (constant != nullptr && is_one_number(ort::type_and_shape(claims.api, constant))) {
    const auto code = *static_cast<const std::uint8_t*>(ort::data(claims.api, constant));
    input.format.zero_point = input.format.is_signed ? static_cast<std::int8_t>(code) : code;
  } else {
    input.zero_point = zero_point;
  }
  return input;
}

void set_scale(const Claims& claims, const GraphValue& scale, Int8Input& input) {
  const ort::Value* constant = scale.constant();
  if (constant != nullptr && is_one_number(ort::type_and_shape(claims.api, constant))) {
    input.format.scale = *static_cast<const float*>(ort::data(claims.api, constant));
  } else {
    input.scale = scale;
  }
}

// The bias that is an input of the node.
void read_own_bias(const Claims& claims, const GraphNode& node, std::size_t index, std::int64_t N, Int8Plan& plan) {
  if (!node.input(index)) return;
  std::optional<std::vector<float>> bias = read_bias(claims, *node.input(index), N, plan.nodes);
  if (!bias) node.reject("its bias is no constant of N values");
  plan.set_bias(std::move(*bias));
}

std::unique_ptr<Plan> plan_dynamic_quantize_matmul(const Claims& claims, const GraphNode& node) {
  const Int8Source weight = read_int8_weight(claims.api, node,
                                             {node.required_constant(1, "B"), node.required_constant(2, "b_scale"),
                                              optional_constant(node, 3, "b_zero_point")});
  Int8Input input{node.required(0, "A")};
  if (!input.is_float()) node.reject("input A is not float32");
  input.is_dynamic = true;
  std::unique_ptr<Int8Plan> plan = make_plan(claims, node, input, weight, {node.get()});
  read_own_bias(claims, node, 4, weight.N, *plan);
  plan->take_bias(claims, node.output());
  return plan;
}

std::unique_ptr<Plan> plan_matmul_integer_to_float(const Claims& claims, const GraphNode& node) {
  const Int8Source weight = read_int8_weight(claims.api, node,
                                             {node.required_constant(1, "B"), node.required_constant(3, "b_scale"),
                                              optional_constant(node, 5, "b_zero_point")});
  const GraphValue a = node.required(0, "A"), scale = node.required(2, "a_scale");
  if (scale.type().element != ort::kFloat) node.reject("a_scale is not float32");
  Int8Input input = read_codes(claims, a, node.input(4));
  set_scale(claims, scale, input);
  std::unique_ptr<Int8Plan> plan = make_plan(claims, node, input, weight, {node.get()});
  read_own_bias(claims, node, 6, weight.N, *plan);
  plan->take_bias(claims, node.output());
  return plan;
}

// What the Muls behind a MatMulInteger bring.
struct Scales {
  std::optional<GraphValue> activations;  // one number that comes in at run time
  const ort::Value* weight = nullptr;     // a constant
};

// Follows Muls from the sums of a MatMulInteger and collects what they multiply.
class ScaleFinder {
 public:
  ScaleFinder(const Claims& claims, std::vector<const ort::Node*>& nodes) : claims_(claims), nodes_(nodes) {}

  // The last product.
  GraphValue follow(GraphValue value) {
    rank_ = value.type().dims.size();
    while (const ort::Node* reader = claims_.graph.only_reader(value)) {
      const GraphNode mul(claims_.api, reader);
      if (!mul.is("Mul") || !claims_.is_free(reader)) break;
      const GraphValue first = mul.required(0, "A");
      if (!take(first.name() == value.name() ? mul.required(1, "B") : first)) break;
      nodes_.push_back(reader);
      value = mul.output();
    }
    return value;
  }

  const Scales& scales() const { return scales_; }

 private:
  bool take(const GraphValue& factor) { return take_constant(factor) || take_product(factor) || take_number(factor); }

  bool take_constant(const GraphValue& factor) {
    const ort::Value* constant = factor.constant();
    if (constant == nullptr || scales_.weight != nullptr) return false;
    const std::vector<std::int64_t> dims = ort::type_and_shape(claims_.api, constant).dims;
    const bool adds_axes = dims.size() > std::max<std::size_t>(rank_, 1) && !claims_.compiling;
    const bool is_row =
        std::all_of(dims.begin(), dims.end() - !dims.empty(), [](std::int64_t size) { return size == 1; });
    if (adds_axes || !is_row) return false;
    scales_.weight = constant;
    return true;
  }

  // Both at once, multiplied first.
  bool take_product(const GraphValue& factor) {
    const ort::Node* producer = claims_.graph.producer(factor);
    if (producer == nullptr || claims_.graph.only_reader(factor) == nullptr || !claims_.is_free(producer)) return false;
    const GraphNode mul(claims_.api, producer);
    if (!mul.is("Mul")) return false;
    const Scales before = scales_;
    const GraphValue a = mul.required(0, "A"), b = mul.required(1, "B");
    if ((take_constant(a) && take_number(b)) || (take_constant(b) && take_number(a))) {
      nodes_.push_back(producer);
      return true;
    }
    scales_ = before;
    return false;
  }

  bool take_number(const GraphValue& factor) {
    if (scales_.activations || factor.is_constant() || !is_number(factor)) return false;
    scales_.activations = factor;
    return true;
  }

  // For sure: a scale of its own for each row is no number.
  bool is_number(const GraphValue& value) const {
    const ValueType type = value.type();
    if (type.element != ort::kFloat) return false;
    if (claims_.compiling || (type.dims.size() == 1 && type.dims[0].size == 1)) return true;
    const ort::Node* producer = claims_.graph.producer(value);
    return producer != nullptr && GraphNode(claims_.api, producer).is("DynamicQuantizeLinear");
  }

  const Claims& claims_;
  std::vector<const ort::Node*>& nodes_;
  Scales scales_;
  std::size_t rank_ = 0;  // of the product, 0 where it is unknown
};

// The DynamicQuantizeLinear that makes the codes, their zero point and their scale for this product alone.
const ort::Node* find_quantize(const Claims& claims, const Int8Input& input) {
  const ort::Node* producer = claims.graph.producer(input.a);
  if (producer == nullptr || !claims.is_free(producer) || !input.scale || !input.zero_point) return nullptr;
  const GraphNode node(claims.api, producer);
  if (!node.is("DynamicQuantizeLinear")) return nullptr;
  const GraphValue* values[] = {&input.a, &*input.scale, &*input.zero_point};
  for (std::size_t i = 0; i < 3; ++i) {
    const GraphValue output = node.output(i);
    if (output.name() != values[i]->name() || claims.graph.only_reader(output) == nullptr) return nullptr;
  }
  return producer;
}

std::unique_ptr<Plan> plan_matmul_integer(const Claims& claims, const GraphNode& node) {
  std::vector<const ort::Node*> nodes = {node.get()};
  const std::optional<GraphNode> cast = claims.free_reader(node.output());
  if (!cast || !cast->is("Cast") || cast->output().type().element != ort::kFloat) node.reject("its result is int32");
  nodes.push_back(cast->get());
  ScaleFinder finder(claims, nodes);
  const GraphValue product = finder.follow(cast->output());
  const Scales& scales = finder.scales();

  const Int8Source weight = read_int8_weight(
      claims.api, node, {node.required_constant(1, "B"), scales.weight, optional_constant(node, 3, "b_zero_point")});
  Int8Input input = read_codes(claims, node.required(0, "A"), node.input(2));
  input.scale = scales.activations;
  if (const ort::Node* quantize = find_quantize(claims, input)) {
    nodes.push_back(quantize);
    input = {GraphNode(claims.api, quantize).required(0, "x")};
    input.is_dynamic = true;
  }
  std::unique_ptr<Int8Plan> plan = make_plan(claims, node, input, weight, std::move(nodes));
  plan->take_bias(claims, product);
  return plan;
}

}  // namespace

std::unique_ptr<Plan> plan_dynamic_matmul(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  if (node.is("MatMulInteger")) return plan_matmul_integer(claims, node);
  if (node.is("com.microsoft", "DynamicQuantizeMatMul")) return plan_dynamic_quantize_matmul(claims, node);
  if (node.is("com.microsoft", "MatMulIntegerToFloat")) return plan_matmul_integer_to_float(claims, node);
  return nullptr;
}

}  // namespace onnxpress
