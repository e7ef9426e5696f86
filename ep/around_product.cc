#include "around_product.h"

#include <utility>

namespace onnxpress {
namespace {

bool is_rms_norm(const GraphNode& node) {
  return (node.is("SimplifiedLayerNormalization") || node.is("RMSNormalization")) && node.outputs() == 1 &&
         node.attribute("stash_type", 1) == 1;
}

// Whether an axis is the last one of a value.
bool is_last(const Claims& claims, std::int64_t axis, const GraphValue& value) {
  if (axis == -1 || claims.compiling) return true;
  const ValueType type = value.type();
  return type.has_shape && axis == static_cast<std::int64_t>(type.dims.size()) - 1;
}

bool halves_last_axis(const Claims& claims, const GraphNode& split, std::int64_t N) {
  if (!split.is("Split") || split.outputs() != 2) return false;
  if (claims.compiling) return true;  // constants may be gone
  if (!is_last(claims, split.attribute("axis", 0), split.required(0, "input"))) return false;
  const std::optional<GraphValue> sizes = split.input(1);
  const std::vector<std::int64_t> halves = {N / 2, N / 2};
  if (!sizes) {
    const std::vector<std::int64_t> given = split.attributes("split");
    return given.empty() || given == halves;
  }
  const ort::Value* constant = sizes->constant();
  if (constant == nullptr) return false;
  const ort::TypeAndShape type = ort::type_and_shape(claims.api, constant);
  if (type.type != ort::kInt64 || type.dims != std::vector<std::int64_t>{2}) return false;
  const auto* given = static_cast<const std::int64_t*>(ort::data(claims.api, constant));
  return given[0] == halves[0] && given[1] == halves[1];
}

}  // namespace

std::optional<FoundNorm> find_norm(const Claims& claims, const GraphValue& value, const GraphNode& reader,
                                   std::int64_t K) {
  const std::optional<GraphNode> norm = claims.free_source(value, reader);
  if (!norm || !is_rms_norm(*norm)) return std::nullopt;
  const GraphValue x = norm->required(0, "X");
  if (x.is_constant() || x.type().element != ort::kFloat) return std::nullopt;
  if (!is_last(claims, norm->attribute("axis", -1), x)) return std::nullopt;
  const ort::Value* scale = norm->required(1, "scale").constant();
  if (scale == nullptr) return std::nullopt;
  const ort::TypeAndShape type = ort::type_and_shape(claims.api, scale);
  if (type.type != ort::kFloat || type.dims != std::vector<std::int64_t>{K}) return std::nullopt;
  return FoundNorm{norm->get(), x, scale, norm->float_attribute("epsilon", 1e-5f)};
}

std::optional<FoundGlu> find_glu(const Claims& claims, const GraphValue& value, std::int64_t N) {
  const std::optional<GraphNode> split = claims.free_reader(value);
  if (!split || N % 2 != 0 || !halves_last_axis(claims, *split, N)) return std::nullopt;
  for (const std::size_t half : {0u, 1u}) {
    const std::optional<FoundActivation> found = find_activation(claims, split->output(half));
    if (!found) continue;
    const std::optional<GraphNode> multiply = claims.free_reader(found->last.output());
    if (!multiply || !multiply->is("Mul")) continue;
    if (claims.graph.only_reader(split->output(1 - half)) != multiply->get()) continue;
    FoundGlu glu{half == 0 ? Glu::kFirst : Glu::kSecond, found->activation, found->nodes};
    glu.nodes.push_back(split->get());
    glu.nodes.push_back(multiply->get());
    return glu;
  }
  return std::nullopt;
}

std::optional<FoundAddend> find_residual(const Claims& claims, const GraphValue& value) {
  const std::optional<GraphNode> add = claims.free_reader(value);
  if (!add || (!add->is("Add") && !add->is("Sum")) || add->inputs() != 2) return std::nullopt;
  const GraphValue addend = add->input_beside(value);
  // A constant would not be there at run time.
  if (addend.is_constant() || addend.type().element != ort::kFloat) return std::nullopt;
  if (!claims.compiling && !value.type().same_shape(addend.type())) return std::nullopt;
  return FoundAddend{add->get(), addend};
}

}  // namespace onnxpress
