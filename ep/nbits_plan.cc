#include "nbits_plan.h"

#include <cstdint>
#include <cstring>
#include <utility>

#include "addend.h"
#include "around_product.h"
#include "context_nodes.h"
#include "kernels/half.h"
#include "minifloat.h"
#include "nbits_verifier.h"
#include "ops/shared_weights.h"

namespace onnxpress {
namespace {

// Indices of inputs of the compiled node, or `kNoInput`.
struct InputIndices {
  std::size_t a, bias, gate, addend;
};

// What is constant around the product.
struct Around {
  Blob bias, norm_scale;  // empty where there is none
  float norm_epsilon = 0;
  Activation activation = Activation::kNone;
  Glu glu = Glu::kNone;
};

class CompiledNBits final : public CompiledNode {
 public:
  CompiledNBits(const ort::Api& api, NBitsProduct product, PackedWeight weight, Around around, InputIndices inputs,
                std::unique_ptr<NBitsVerifier> verifier)
      : CompiledNode(api),
        product_(std::move(product)),
        weight_(std::move(weight)),
        around_(std::move(around)),
        inputs_(inputs),
        verifier_(std::move(verifier)) {}

  void run(ort::KernelContext* context) const override {
    const ort::IntraOpPool pool(api_, context);
    RmsNorm norm;
    if (around_.norm_scale.size != 0) {
      norm = {reinterpret_cast<const float*>(around_.norm_scale.data()), around_.norm_epsilon};
    }
    NBitsEpilogue epilogue;
    epilogue.activation = around_.activation;
    epilogue.glu = around_.glu;
    if (around_.bias.size != 0) epilogue.bias = around_.bias.data();
    if (inputs_.bias != kNoInput) epilogue.bias = product_.bias(input(context, inputs_.bias));
    if (inputs_.gate != kNoInput) epilogue.gate = input(context, inputs_.gate);
    if (inputs_.addend != kNoInput) epilogue.addend = input(context, inputs_.addend);
    const ort::Value* a = input(context, inputs_.a);
    const NBitsOutput y = product_.compute(context, a, weight_.view, norm, epilogue, pool);
    if (verifier_ != nullptr) verifier_->check(ort::data(api_, a), y.M, norm, epilogue, y.values);
  }

  void save(ContextWriter& context) const override {
    const NBitsLayout& layout = weight_.layout;
    for (std::int64_t size : {layout.K, layout.N, layout.block_size}) context.number(size);
    context.number(layout.bits);
    context.number(static_cast<std::int64_t>(layout.kind));
    context.number(static_cast<std::int64_t>(layout.scale_type));
    context.number(static_cast<std::int64_t>(layout.zero_points));
    context.blob(weight_.memory);
    context.text(product_.label());
    context.number(product_.activation());
    context.number(product_.accuracy_level());
    context.number(static_cast<std::int64_t>(around_.activation));
    context.number(static_cast<std::int64_t>(around_.glu));
    context.number(static_cast<std::int64_t>(float_to_bits(around_.norm_epsilon)));
    for (std::size_t index : {inputs_.a, inputs_.bias, inputs_.gate, inputs_.addend}) {
      context.number(static_cast<std::int64_t>(index));
    }
    context.blob(around_.bias);
    context.blob(around_.norm_scale);
  }

 private:
  const NBitsProduct product_;
  const PackedWeight weight_;
  const Around around_;
  const InputIndices inputs_;
  const std::unique_ptr<NBitsVerifier> verifier_;
};

PackedWeight load_weight(ContextReader& record) {
  using ZeroPoints = NBitsLayout::ZeroPoints;
  NBitsLayout layout;
  for (std::int64_t* size : {&layout.K, &layout.N, &layout.block_size}) *size = record.number();
  layout.bits = static_cast<int>(record.number(2, 8));
  layout.kind = static_cast<CodeKind>(record.number(0, kMiniFloatFormats));
  layout.scale_type = static_cast<ScaleType>(record.number(0, static_cast<int>(ScaleType::kExponent)));
  layout.zero_points = static_cast<ZeroPoints>(record.number(0, static_cast<int>(ZeroPoints::kFloats)));
  if (!is_valid(layout)) record.reject("is damaged: it holds an impossible weight");
  Blob memory = record.blob();
  if (memory.size != packed_size(layout)) record.reject("is damaged: it holds a weight of the wrong size");
  const NBitsWeight weight = view(layout, memory.data());
  return {layout, std::move(memory), weight};
}

}  // namespace

bool is_nbits_faster(const Plan& plan, Isa isa) {
  // Portable loops are slower than ONNX Runtime's, which has code for every CPU that it runs on.
  return is_nbits_vectorized(isa) || !plan.has_rival;
}

std::unique_ptr<CompiledNode> load_nbits(SavedNode& saved) {
  ContextReader& record = saved.record;
  PackedWeight weight = load_weight(record);
  const std::string label = record.text();
  const auto type = static_cast<ort::ElementType>(record.number());
  if (type != ort::kFloat && type != ort::kFloat16) record.reject("is damaged: activations of no known type");
  const NBitsLayout& layout = weight.layout;
  const std::int64_t own_level = record.number(0, 4);
  const std::int64_t level = layout.kind == CodeKind::kInteger ? saved.options.accuracy_level.value_or(own_level)
                                                               : minifloat_level(saved.options, own_level);
  NBitsProduct product(saved.api, label, {layout.K, layout.N, layout.bits, layout.block_size, level, layout.kind},
                       {type, type, ort::kUint8}, saved.options.isa);
  Around around;
  around.activation = static_cast<Activation>(record.number(0, static_cast<int>(Activation::kGeluTanh)));
  around.glu = static_cast<Glu>(record.number(0, static_cast<int>(Glu::kSecond)));
  around.norm_epsilon = bits_to_float(static_cast<std::uint32_t>(record.number(0, UINT32_MAX)));
  const InputIndices inputs{saved.input(type), saved.input(type), saved.input(type), saved.input(type)};
  around.bias = record.blob();
  around.norm_scale = record.blob();
  const auto is_size = [](const Blob& blob, std::size_t size) { return blob.size == 0 || blob.size == size; };
  if (inputs.a == kNoInput || !is_size(around.bias, product.bias_bytes()) ||
      !is_size(around.norm_scale, static_cast<std::size_t>(layout.K) * sizeof(float))) {
    record.reject("is damaged: it holds an input of the wrong size");
  }
  const bool meets = inputs.gate != kNoInput || inputs.addend != kNoInput, halves = around.glu != Glu::kNone;
  if (type != ort::kFloat &&
      (around.activation != Activation::kNone || meets || halves || around.norm_scale.size != 0)) {
    record.reject("is damaged: an activation of float16");
  }
  if (halves && (meets || layout.N % 2 != 0)) record.reject("is damaged: halves that do not fit");
  saved.check_output(type);
  std::unique_ptr<NBitsVerifier> verifier;
  if (saved.options.verify) verifier = std::make_unique<NBitsVerifier>(saved.api, saved.logger, product, weight.view);
  return std::make_unique<CompiledNBits>(saved.api, std::move(product), std::move(weight), std::move(around), inputs,
                                         std::move(verifier));
}

NBitsPlan::NBitsPlan(const Claims& claims, NBitsProduct product, const NBitsSource& weight, std::string a)
    : api_(claims.api),
      options_(claims.options),
      logger_(claims.logger),
      product_(std::move(product)),
      weight_(weight),
      a_(std::move(a)) {}

void NBitsPlan::set_bias(const ort::Value* constant) {
  product_.bias(constant);  // checks it
  constant_bias_ = constant;
}

void NBitsPlan::set_bias(const GraphNode& node, std::size_t index) {
  const std::optional<GraphValue> value = node.input(index);
  if (!value) return;
  if (const ort::Value* constant = value->constant()) return set_bias(constant);
  bias_ = node.required_variable(index, "bias");
}

void NBitsPlan::extend(const Claims& claims, const GraphNode& node) {
  const GraphValue value = take_bias(claims, node.output());
  // In float16 each node rounds what it hands on.
  if (product_.activation() != ort::kFloat) return;
  take_norm(claims, node);
  if (const std::optional<FoundActivation> found = find_activation(claims, value)) {
    take_activation(claims, *found);
  } else if (const std::optional<FoundGlu> glu = find_glu(claims, value, weight_.N)) {
    activation_ = glu->activation;
    glu_ = glu->half;
    nodes.insert(nodes.end(), glu->nodes.begin(), glu->nodes.end());
  } else if (const std::optional<FoundAddend> sum = find_residual(claims, value)) {
    addend_ = sum->addend.name();
    nodes.push_back(sum->node);
  }
}

void NBitsPlan::take_norm(const Claims& claims, const GraphNode& node) {
  for (std::size_t i = 0; i < node.inputs(); ++i) {
    const std::optional<GraphValue> value = node.input(i);
    if (!value || value->name() != a_) continue;
    const std::optional<FoundNorm> norm = find_norm(claims, *value, node, weight_.K);
    if (!norm) return;
    a_ = norm->input.name();
    norm_scale_ = norm->scale;
    norm_epsilon_ = norm->epsilon;
    nodes.push_back(norm->node);
    return;
  }
}

GraphValue NBitsPlan::take_bias(const Claims& claims, const GraphValue& product) {
  if (constant_bias_ != nullptr || !bias_.empty()) return product;
  const std::optional<Addend> addend = find_addend(claims, product);
  const ort::Value* constant = addend ? addend->value.constant() : nullptr;
  // A constant of one axis cannot broadcast the product.
  if (constant == nullptr || !product_.is_bias(ort::type_and_shape(api_, constant))) return product;
  constant_bias_ = constant;
  nodes.push_back(addend->add);
  return GraphNode(api_, addend->add).output();
}

void NBitsPlan::take_activation(const Claims& claims, const FoundActivation& found) {
  activation_ = found.activation;
  nodes.insert(nodes.end(), found.nodes.begin(), found.nodes.end());
  const std::optional<FoundGate> gate = find_gate(claims, found.last.output(), a_);
  if (!gate) return;
  gate_ = gate->factor.name();
  nodes.push_back(gate->node);
}

std::unique_ptr<CompiledNode> NBitsPlan::compile(const ort::Node* compiled) const {
  Around around{{}, {}, norm_epsilon_, activation_, glu_};
  if (constant_bias_ != nullptr) around.bias = copy(ort::data(api_, constant_bias_), product_.bias_bytes());
  if (norm_scale_ != nullptr) {
    around.norm_scale = copy(ort::data(api_, norm_scale_), static_cast<std::size_t>(weight_.K) * sizeof(float));
  }
  PackedWeight weight = share(pack(weight_, Sequential()));
  std::unique_ptr<NBitsVerifier> verifier;
  if (options_.verify) verifier = std::make_unique<NBitsVerifier>(api_, logger_, product_, weight_);
  const auto index = [&](const std::string& name) {
    return name.empty() ? kNoInput : input_index(api_, compiled, name);
  };
  const InputIndices inputs{index(a_), index(bias_), index(gate_), index(addend_)};
  return std::make_unique<CompiledNBits>(api_, product_, std::move(weight), std::move(around), inputs,
                                         std::move(verifier));
}

}  // namespace onnxpress
