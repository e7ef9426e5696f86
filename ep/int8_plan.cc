#include "int8_plan.h"

#include <utility>

#include "addend.h"
#include "context_nodes.h"
#include "dequantize.h"
#include "int8_verifier.h"
#include "kernels/half.h"
#include "ops/shared_weights.h"

namespace onnxpress {
namespace {

bool is_8_bits(ort::ElementType type) { return type == ort::kInt8 || type == ort::kUint8; }

// All that a run needs but what comes in.
struct Int8Node {
  std::string label;
  PackedInt8 weight;
  Blob bias;          // [N] of float32, or empty
  Int8Format format;  // of the activations
  bool is_float, is_dynamic;
  std::optional<Int8Format> output;
  std::size_t a, scale, zero_point;  // indices of inputs of the compiled node, or kNoInput
  Isa isa;
};

class CompiledInt8 final : public CompiledNode {
 public:
  CompiledInt8(const ort::Api& api, Int8Node node, std::unique_ptr<Int8Verifier> verifier)
      : CompiledNode(api), node_(std::move(node)), verifier_(std::move(verifier)) {}

  void run(ort::KernelContext* context) const override {
    const ort::IntraOpPool pool(api_, context);
    const Int8Weight& weight = node_.weight.view;
    const ort::Value* a = input(context, node_.a);
    std::vector<std::int64_t> shape = ort::type_and_shape(api_, a).dims;
    if (shape.empty() || shape.back() != weight.K) {
      reject("input A has shape " + ort::to_string(shape) + ", its last size must be K=" + std::to_string(weight.K));
    }
    shape.back() = weight.N;
    Int8Problem problem;
    problem.M = 1;
    for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) problem.M *= shape[axis];
    ort::Value* y = nullptr;
    ort::check(api_, api_.KernelContext_GetOutput(context, std::size_t{0}, shape.data(), shape.size(), &y));
    if (y == nullptr || problem.M == 0) return;  // null where nothing reads it

    problem.weight = &weight;
    problem.bias = reinterpret_cast<const float*>(node_.bias.data());
    const void* activations = ort::data(api_, a);
    if (node_.is_float) {
      problem.floats = static_cast<const float*>(activations);
    } else {
      problem.codes = static_cast<const std::uint8_t*>(activations);
    }
    problem.input = format(context, problem, pool);
    void* results = const_cast<void*>(ort::data(api_, y));
    if (node_.output) {
      problem.codes_out = static_cast<std::uint8_t*>(results);
      problem.output = *node_.output;
    } else {
      problem.floats_out = static_cast<float*>(results);
    }
    matmul_int8(problem, node_.isa, pool);
    if (verifier_ != nullptr) verifier_->check(problem);
  }

  void save(ContextWriter& context) const override {
    const Int8Layout& layout = node_.weight.layout;
    for (std::int64_t number : {layout.K, layout.N, std::int64_t{layout.zero_points}}) context.number(number);
    context.blob(node_.weight.memory);
    context.blob(node_.bias);
    context.text(node_.label);
    save_format(context, node_.format);
    for (bool flag : {node_.is_float, node_.is_dynamic, node_.output.has_value()}) context.number(flag);
    if (node_.output) save_format(context, *node_.output);
    for (std::size_t index : {node_.a, node_.scale, node_.zero_point}) {
      context.number(static_cast<std::int64_t>(index));
    }
  }

 private:
  static void save_format(ContextWriter& context, const Int8Format& format) {
    context.number(float_to_bits(format.scale));
    context.number(format.zero_point);
    context.number(format.is_signed);
  }

  Int8Format format(ort::KernelContext* context, const Int8Problem& problem, const Parallel& pool) const {
    if (node_.is_dynamic) return dynamic_format(problem.floats, problem.M * node_.weight.view.K, node_.isa, pool);
    Int8Format format = node_.format;
    if (node_.scale != kNoInput) format.scale = *static_cast<const float*>(one_number(context, node_.scale, "scale"));
    if (node_.zero_point != kNoInput) {
      const auto* code = static_cast<const std::uint8_t*>(one_number(context, node_.zero_point, "zero point"));
      format.zero_point = format.is_signed ? static_cast<std::int8_t>(*code) : *code;
    }
    return format;
  }

  const void* one_number(ort::KernelContext* context, std::size_t index, const char* name) const {
    const ort::Value* value = input(context, index);
    const ort::TypeAndShape type = ort::type_and_shape(api_, value);
    if (!is_one_number(type)) {
      reject(std::string("the ") + name + " of A has shape " + ort::to_string(type.dims) + ", must be one for all");
    }
    return ort::data(api_, value);
  }

  [[noreturn]] void reject(const std::string& what) const { throw ort::InvalidArgument(node_.label + ": " + what); }

  const Int8Node node_;
  const std::unique_ptr<Int8Verifier> verifier_;
};

Int8Format load_format(ContextReader& record) {
  Int8Format format;
  format.scale = bits_to_float(static_cast<std::uint32_t>(record.number(0, 0xffffffff)));
  format.zero_point = static_cast<std::int32_t>(record.number(-128, 255));
  format.is_signed = record.number(0, 1) == 1;
  return format;
}

ort::ElementType type_of(const Int8Format& format) { return format.is_signed ? ort::kInt8 : ort::kUint8; }

}  // namespace

std::unique_ptr<CompiledNode> load_int8(SavedNode& saved) {
  ContextReader& record = saved.record;
  Int8Layout layout;
  layout.K = record.number();
  layout.N = record.number();
  layout.zero_points = record.number(0, 1) == 1;
  if (!is_valid(layout)) record.reject("is damaged: it holds an impossible weight");
  Int8Node node{};
  node.isa = saved.options.isa;
  node.weight = {layout, record.blob(), {}};
  node.bias = record.blob();
  const auto bias_size = static_cast<std::size_t>(layout.N) * sizeof(float);
  if (node.weight.memory.size != packed_size(layout) || (node.bias.size != 0 && node.bias.size != bias_size)) {
    record.reject("is damaged: it holds a weight or a bias of the wrong size");
  }
  if (node.bias.size == 0) node.bias = {};
  node.weight.view = view(layout, node.weight.memory.data());
  node.label = record.text();
  node.format = load_format(record);
  node.is_float = record.number(0, 1) == 1;
  node.is_dynamic = record.number(0, 1) == 1;
  if (record.number(0, 1) == 1) node.output = load_format(record);
  node.a = saved.input(node.is_float ? ort::kFloat : type_of(node.format));
  node.scale = saved.input(ort::kFloat);
  node.zero_point = saved.input(type_of(node.format));
  if (node.a == kNoInput || (node.is_dynamic && !node.is_float)) record.reject("is damaged: it holds no activations");
  saved.check_output(node.output ? type_of(*node.output) : ort::kFloat);
  std::unique_ptr<Int8Verifier> verifier;
  if (saved.options.verify) {
    verifier = std::make_unique<Int8Verifier>(saved.api, saved.logger, node.label, node.weight.view);
  }
  return std::make_unique<CompiledInt8>(saved.api, std::move(node), std::move(verifier));
}

Int8Source read_int8_weight(const ort::Api& api, const GraphNode& node, const Int8Constants& constants) {
  Int8Source w;
  const ort::TypeAndShape codes = ort::type_and_shape(api, constants.codes);
  if (!is_8_bits(codes.type)) node.reject("its weight is not of 8 bits");
  if (codes.dims.size() != 2) node.reject("its weight has not two axes");
  w.transposed = constants.transposed;
  w.K = codes.dims[w.transposed ? 1 : 0];
  w.N = codes.dims[w.transposed ? 0 : 1];
  if (w.K < 1 || w.N < 1) node.reject("its weight is empty");
  w.is_signed = codes.type == ort::kInt8;
  w.codes = static_cast<const std::uint8_t*>(ort::data(api, constants.codes));

  const auto is_per_column = [&](const ort::Value* value, ort::ElementType type, const char* name) {
    ort::TypeAndShape found = ort::type_and_shape(api, value);
    while (found.dims.size() > 1 && found.dims.front() == 1) found.dims.erase(found.dims.begin());
    const bool one = is_one_number(found);
    if (found.type != type || (!one && found.dims != std::vector<std::int64_t>{w.N})) {
      node.reject(std::string("its ") + name + " are neither one for all nor one a column, or of another type");
    }
    return !one;
  };
  if (constants.scales != nullptr) {
    w.scale_per_column = is_per_column(constants.scales, ort::kFloat, "scales");
    w.scales = static_cast<const float*>(ort::data(api, constants.scales));
  }
  if (constants.zero_points != nullptr) {
    w.zero_point_per_column = is_per_column(constants.zero_points, codes.type, "zero points");
    w.zero_points = static_cast<const std::uint8_t*>(ort::data(api, constants.zero_points));
  }
  return w;
}

Int8Plan::Int8Plan(const Claims& claims, const GraphNode& node, const Int8Input& input, const Int8Source& weight)
    : api_(claims.api),
      options_(claims.options),
      logger_(claims.logger),
      label_(node.label()),
      input_(input),
      weight_(weight) {
  // ONNX Runtime drops the constants of compiled nodes.
  const auto is_constant = [](const std::optional<GraphValue>& value) { return value && value->is_constant(); };
  if (is_constant(input.a)) node.reject("its activations are constant");
  if (is_constant(input.scale) || is_constant(input.zero_point)) {
    node.reject("its activations have constants that are not one for all");
  }
  if (!input.is_float() && !is_8_bits(input.a.type().element)) {
    node.reject("its activations are neither float32 nor of 8 bits");
  }
}

GraphValue Int8Plan::take_bias(const Claims& claims, const GraphValue& product) {
  const std::optional<Addend> addend = has_bias() ? std::nullopt : find_addend(claims, product);
  // A bias has one axis: it cannot broadcast the product.
  std::optional<std::vector<float>> bias;
  if (addend) bias = read_bias(claims, addend->value, weight_.N, nodes);
  if (!bias) return product;
  bias_ = std::move(*bias);
  nodes.push_back(addend->add);
  return GraphNode(api_, addend->add).output();
}

std::unique_ptr<CompiledNode> Int8Plan::compile(const ort::Node* compiled) const {
  const auto index = [&](const std::optional<GraphValue>& value) {
    return value ? input_index(api_, compiled, value->name()) : kNoInput;
  };
  std::unique_ptr<Int8Verifier> verifier;
  if (options_.verify) verifier = std::make_unique<Int8Verifier>(api_, logger_, label_, weight_);
  Int8Node node{label_,
                share(pack(weight_, Sequential())),
                bias_.empty() ? Blob{} : copy(bias_.data(), bias_.size() * sizeof(float)),
                input_.format,
                input_.is_float(),
                input_.is_dynamic,
                output_,
                index(input_.a),
                index(input_.scale),
                index(input_.zero_point),
                options_.isa};
  return std::make_unique<CompiledInt8>(api_, std::move(node), std::move(verifier));
}

bool is_int8_faster(const Plan& plan, Isa isa) {
  // On Arm ONNX Runtime's take fewer instructions. Without VNNI an exact product costs more than one whose sums of 16
  // bits may saturate, as ONNX Runtime's do there: 0.5 to 0.6 times as fast from 16 rows on. Beside float32 it is 1.2
  // to 5 times as fast, beside portable code 3 to 14.
  const Int8Dots dots = int8_dots(isa);
  return dots == Int8Dots::kNative || (dots != Int8Dots::kPortable && !plan.has_rival);
}

}  // namespace onnxpress
