#include "gather.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/gather_nbits.h"

namespace onnxpress {
namespace {

// What the nodes say of the table; its values come in at run time.
struct Table {
  NBitsTable sizes;
  bool has_half_scales;
};

std::string text(const std::vector<Dim>& dims) {
  std::vector<std::int64_t> sizes;
  for (const Dim& dim : dims) sizes.push_back(dim.size);
  return ort::to_string(sizes);
}

ValueType constant_type(const GraphNode& node, std::size_t index, const char* name) {
  const GraphValue value = node.required(index, name);
  if (!value.is_constant()) node.reject(std::string("input ") + name + " is no constant");
  ValueType type = value.type();
  if (type.dims.size() != 2) node.reject(std::string("input ") + name + " has not two axes");
  return type;
}

void require_shape(const GraphNode& node, const char* name, const ValueType& type, std::int64_t rows,
                   std::int64_t columns) {
  if (type.dims[0].size != rows || type.dims[1].size != columns) {
    node.reject(std::string("input ") + name + " has shape " + text(type.dims) + ", must be " +
                ort::to_string({rows, columns}));
  }
}

void check_axes(const GraphNode& node) {
  const std::int64_t gather_axis = node.attribute("gather_axis", 0);
  const std::int64_t quantize_axis = node.attribute("quantize_axis", 1);
  if (gather_axis != 0 && gather_axis != -2) node.reject("gather_axis is not 0");
  if (quantize_axis != 1 && quantize_axis != -1) node.reject("quantize_axis is not the last");
}

Table read_table(const GraphNode& node) {
  const ValueType data = constant_type(node, 0, "data"), scales = constant_type(node, 2, "scales");
  const bool bytes = data.element == ort::kUint8;
  if (!bytes && data.element != ort::kInt4 && data.element != ort::kUint4) {
    node.reject("input data is neither uint8, int4 nor uint4");
  }
  if (scales.element != ort::kFloat && scales.element != ort::kFloat16) {
    node.reject("scales are neither float32 nor float16");
  }
  check_axes(node);
  const std::int64_t bits = node.attribute("bits", 4);
  if (bits != 4 && !(bits == 8 && bytes)) node.reject("bits is " + std::to_string(bits) + ", not 4, or 8 of uint8");

  NBitsTable t;
  t.bits = static_cast<int>(bits);
  t.is_signed = data.element == ort::kInt4;
  t.zero_point = bytes ? 1 << (t.bits - 1) : 0;
  // uint8 holds whole rows, int4 and uint4 are without padding.
  const std::int64_t codes_in_one = bytes ? 8 / bits : 1;
  t.rows = data.dims[0].size;
  t.columns = data.dims[1].size * codes_in_one;
  if (t.rows < 1 || t.columns < 1) node.reject("input data is empty");
  t.block_size = node.attribute("block_size", 128);
  if (t.block_size < 16 || (t.block_size & (t.block_size - 1)) != 0) {
    node.reject("block_size is " + std::to_string(t.block_size) + ", no power of two from 16");
  }
  require_shape(node, "scales", scales, t.rows, t.blocks());
  if (node.input(3)) {
    const ValueType zero_points = constant_type(node, 3, "zero_points");
    if (zero_points.element != data.element) node.reject("zero_points are not of the type of data");
    const std::int64_t stored = (t.blocks() + codes_in_one - 1) / codes_in_one;
    require_shape(node, "zero_points", zero_points, t.rows, stored);
    t.zero_stride = stored * codes_in_one;
  }
  return {t, scales.element == ort::kFloat16};
}

struct InputIndices {
  std::size_t data, indices, scales, zero_points;
};

class CompiledGather final : public CompiledNode {
 public:
  CompiledGather(const ort::Api& api, std::string label, const Table& table, const InputIndices& inputs, Isa isa)
      : CompiledNode(api), label_(std::move(label)), table_(table), inputs_(inputs), isa_(isa) {}

  void run(ort::KernelContext* context) const override {
    NBitsTable table = table_.sizes;
    table.codes = values<std::uint8_t>(context, inputs_.data);
    if (inputs_.zero_points != kNoInput) table.zero_points = values<std::uint8_t>(context, inputs_.zero_points);
    if (table_.has_half_scales) {
      table.half_scales = values<std::uint16_t>(context, inputs_.scales);
    } else {
      table.scales = values<float>(context, inputs_.scales);
    }
    const ort::Value* indices = input(context, inputs_.indices);
    ort::TypeAndShape type = ort::type_and_shape(api_, indices);
    std::int64_t count = 1;
    for (std::int64_t size : type.dims) count *= size;
    const void* numbers = ort::data(api_, indices);
    if (type.type == ort::kInt32) {
      check_indices(static_cast<const std::int32_t*>(numbers), count);
    } else {
      check_indices(static_cast<const std::int64_t*>(numbers), count);
    }
    type.dims.push_back(table.columns);
    ort::Value* y = nullptr;
    ort::check(api_, api_.KernelContext_GetOutput(context, std::size_t{0}, type.dims.data(), type.dims.size(), &y));
    if (y == nullptr || count == 0) return;  // null where nothing reads it
    void* out = const_cast<void*>(ort::data(api_, y));
    const ort::IntraOpPool pool(api_, context);
    if (type.type == ort::kInt32) {
      gather(table, static_cast<const std::int32_t*>(numbers), count, out, isa_, pool);
    } else {
      gather(table, static_cast<const std::int64_t*>(numbers), count, out, isa_, pool);
    }
  }

 private:
  template <class T>
  const T* values(ort::KernelContext* context, std::size_t index) const {
    return static_cast<const T*>(ort::data(api_, input(context, index)));
  }

  // As Gather has it; ONNX Runtime's kernel for these tables gives zeros instead.
  template <class Index>
  void check_indices(const Index* indices, std::int64_t count) const {
    const std::int64_t at = find_outside(table_.sizes, indices, count), rows = table_.sizes.rows;
    if (at == count) return;
    throw ort::InvalidArgument(label_ + ": indices have " + std::to_string(indices[at]) + ", must be " +
                               std::to_string(-rows) + " to " + std::to_string(rows - 1));
  }

  const std::string label_;
  const Table table_;
  const InputIndices inputs_;
  const Isa isa_;
};

class GatherPlan final : public Plan {
 public:
  GatherPlan(const Claims& claims, const GraphNode& node, const Table& table)
      : api_(claims.api), isa_(claims.options.isa), label_(node.label()), table_(table) {
    nodes = {node.get()};
    drops_constants = false;  // the table is read where it lies
    for (std::size_t index = 0; index < std::size(names_); ++index) {
      if (const std::optional<GraphValue> value = node.input(index)) names_[index] = value->name();
    }
  }

  std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const override {
    const auto index = [&](const std::string& name) {
      return name.empty() ? kNoInput : input_index(api_, compiled, name);
    };
    const InputIndices inputs{index(names_[0]), index(names_[1]), index(names_[2]), index(names_[3])};
    return std::make_unique<CompiledGather>(api_, label_, table_, inputs, isa_);
  }

 private:
  const ort::Api& api_;
  const Isa isa_;
  const std::string label_;
  const Table table_;
  std::string names_[4];
};

}  // namespace

std::unique_ptr<Plan> plan_gather(const Claims& claims, const ort::Node* graph_node) {
  const GraphNode node(claims.api, graph_node);
  if (!node.is("com.microsoft", "GatherBlockQuantized")) return nullptr;
  const Table table = read_table(node);
  const ort::ElementType index = node.required(1, "indices").type().element;
  if (index != ort::kInt32 && index != ort::kInt64) node.reject("indices are neither int32 nor int64");
  return std::make_unique<GatherPlan>(claims, node, table);
}

}  // namespace onnxpress
