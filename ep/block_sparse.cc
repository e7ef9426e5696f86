#include "block_sparse.h"

#include <string>
#include <utility>

#include "context_nodes.h"
#include "kernels/half.h"
#include "ops/block_sparse_product.h"
#include "ops/shared_weights.h"

namespace onnxpress {
namespace {

void save_format(ContextWriter& context, const Int8Format& format) {
  context.number(float_to_bits(format.scale));
  context.number(format.zero_point);
}

Int8Format load_format(ContextReader& record) {
  const float scale = bits_to_float(static_cast<std::uint32_t>(record.number(0, 0xffffffff)));
  return {scale, static_cast<std::int32_t>(record.number(0, 255)), false};
}

class CompiledBlockSparse final : public CompiledNode {
 public:
  CompiledBlockSparse(const ort::Api& api, BlockSparseProduct product, std::size_t a)
      : CompiledNode(api), product_(std::move(product)), a_(a) {}

  void run(ort::KernelContext* context) const override {
    product_.compute(context, input(context, a_), ort::IntraOpPool(api_, context));
  }

  void save(ContextWriter& context) const override {
    const BlockSparseLayout& layout = product_.weight().layout;
    for (std::int64_t number : {layout.K, layout.N, layout.block_n, layout.groups, layout.entries, layout.words}) {
      context.number(number);
    }
    for (bool flag : {layout.is_float, layout.gathers}) context.number(flag);
    context.blob(product_.weight().memory);
    context.blob(product_.bias());
    const BlockSparseEpilogue& epilogue = product_.epilogue();
    context.text(epilogue.label);
    for (bool flag : {epilogue.is_uint8, epilogue.is_static, epilogue.output.has_value()}) context.number(flag);
    save_format(context, epilogue.input);
    context.number(static_cast<std::int64_t>(epilogue.activation));
    if (epilogue.output) save_format(context, *epilogue.output);
    context.number(static_cast<std::int64_t>(a_));
  }

 private:
  const BlockSparseProduct product_;
  const std::size_t a_;
};

PackedBlockSparse load_weight(ContextReader& record) {
  BlockSparseLayout layout;
  for (std::int64_t* number : {&layout.K, &layout.N, &layout.block_n, &layout.groups, &layout.entries, &layout.words}) {
    *number = record.number();
  }
  layout.is_float = record.number(0, 1) == 1;
  layout.gathers = record.number(0, 1) == 1;
  if (!is_valid(layout)) record.reject("is damaged: it holds an impossible weight");
  const Blob mapped = record.blob();
  if (mapped.size != packed_size(layout)) record.reject("is damaged: it holds a weight of the wrong size");
  // Copied first: it says where to read, and who else writes to the file could change that after the check.
  Blob memory = share(copy(mapped.data(), mapped.size));
  const BlockSparseWeight weight = view(layout, memory.data());
  if (!is_safe(layout, weight)) record.reject("is damaged: it holds a weight with indices outside of it");
  return {layout, std::move(memory), weight};
}

class BlockSparsePlan final : public Plan {
 public:
  BlockSparsePlan(const Claims& claims, const GraphNode& node, BlockSparseNode read)
      : api_(claims.api), isa_(claims.options.isa), read_(std::move(read)), a_(node.required_variable(kBlockA, "A")) {
    nodes = {node.get()};
  }

  std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const override {
    return std::make_unique<CompiledBlockSparse>(api_, BlockSparseProduct(api_, read_, isa_),
                                                 input_index(api_, compiled, a_));
  }

 private:
  const ort::Api& api_;
  const Isa isa_;
  const BlockSparseNode read_;
  const std::string a_;
};

}  // namespace

std::unique_ptr<CompiledNode> load_block_sparse(SavedNode& saved) {
  ContextReader& record = saved.record;
  PackedBlockSparse weight = load_weight(record);
  Blob bias = record.blob();
  if (bias.size != 0 && bias.size != static_cast<std::size_t>(weight.layout.N) * sizeof(float)) {
    record.reject("is damaged: it holds a bias of the wrong size");
  }
  if (bias.size == 0) bias = {};
  BlockSparseEpilogue epilogue;
  epilogue.label = record.text();
  epilogue.is_uint8 = record.number(0, 1) == 1;
  epilogue.is_static = record.number(0, 1) == 1;
  const bool has_output = record.number(0, 1) == 1;
  epilogue.input = load_format(record);
  epilogue.activation = static_cast<Activation>(record.number(0, static_cast<int>(Activation::kGeluTanh)));
  if (has_output) epilogue.output = load_format(record);
  const bool float_weight = weight.layout.is_float;
  if ((epilogue.is_uint8 && !epilogue.is_static) || (epilogue.is_static && float_weight)) {
    record.reject("is damaged: activations of no possible kind");
  }
  const std::size_t a = saved.input(epilogue.is_uint8 ? ort::kUint8 : ort::kFloat);
  if (a == kNoInput) record.reject("is damaged: it holds no activations");
  saved.check_output(has_output ? ort::kUint8 : ort::kFloat);
  BlockSparseProduct product(saved.api, std::move(weight), std::move(bias), std::move(epilogue), saved.options.isa);
  return std::make_unique<CompiledBlockSparse>(saved.api, std::move(product), a);
}

std::unique_ptr<Plan> plan_block_sparse(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  if (!node.is("onnxpress", "BlockSparseMatMul")) return nullptr;
  const auto required = [&](const char* name) {
    const std::optional<std::int64_t> value = node.attribute(name);
    if (!value) node.reject(std::string("attribute ") + name + " is missing");
    return *value;
  };
  const BlockSparseAttributes attributes{required("K"), required("N"), required("block_k"), required("block_n"),
                                         node.text_attribute("activation", "")};
  const ort::Value* constants[kBlockInputs] = {};
  for (std::size_t index = kBlockValues; index < kBlockInputs; ++index) {
    if (node.input(index)) constants[index] = node.required_constant(index, kBlockInputNames[index]);
  }
  const ort::ElementType a = node.required(kBlockA, "A").type().element;
  BlockSparseNode read = read_block_sparse(claims.api, node.label(), attributes, a, constants);
  const ort::ElementType y = node.output().type().element;
  if (y != (read.epilogue.output ? ort::kUint8 : ort::kFloat)) node.reject("its output has another type than it says");
  return std::make_unique<BlockSparsePlan>(claims, node, std::move(read));
}

}  // namespace onnxpress
