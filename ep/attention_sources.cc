#include "attention_sources.h"

#include <optional>

namespace onnxpress {
namespace {

std::optional<GraphNode> source(const Claims& claims, const std::optional<GraphValue>& value, const GraphNode& reader) {
  return value ? claims.free_source(*value, reader) : std::nullopt;
}

std::optional<GraphNode> find_rotation(const Claims& claims, const GraphNode& node, std::size_t input,
                                       std::int64_t heads) {
  std::optional<GraphNode> found = source(claims, node.input(input), node);
  if (!found || !found->is("com.microsoft", "RotaryEmbedding")) return std::nullopt;
  const bool is_plain = found->attribute("num_heads", 0) == heads && found->float_attribute("scale", 1) == 1 &&
                        found->attribute("is_packed_batching", 0) == 0;
  for (std::size_t i = 0; i < 4; ++i) {
    if (!found->input(i)) return std::nullopt;
  }
  return is_plain ? found : std::nullopt;
}

// Whether both turn by the same angles.
bool are_alike(const GraphNode& one, const GraphNode& other) {
  for (std::size_t i = 1; i < 4; ++i) {
    if (one.input(i)->name() != other.input(i)->name()) return false;
  }
  return one.attribute("interleaved", 0) == other.attribute("interleaved", 0) &&
         one.attribute("rotary_embedding_dim", 0) == other.attribute("rotary_embedding_dim", 0);
}

bool splits_heads(const Claims& claims, const GraphNode& split, const AttentionNode& read) {
  const std::int64_t axis = split.attribute("axis", 0);
  if (split.outputs() != 3 || (axis != -1 && axis != 2) || !split.input(1)) return false;
  if (claims.compiling) return true;
  const ort::Value* sizes = split.input(1)->constant();
  if (sizes == nullptr) return false;
  const ort::TypeAndShape type = ort::type_and_shape(claims.api, sizes);
  const std::int64_t wanted[] = {read.heads * read.head_size, read.kv_heads * read.head_size,
                                 read.kv_heads * read.head_size};
  if (type.type != ort::kInt64 || type.dims != std::vector<std::int64_t>{3}) return false;
  const auto* given = static_cast<const std::int64_t*>(ort::data(claims.api, sizes));
  return given[0] == wanted[0] && given[1] == wanted[1] && given[2] == wanted[2];
}

}  // namespace

AttentionSources find_sources(const Claims& claims, const GraphNode& node, AttentionNode& read) {
  AttentionSources found;
  for (std::size_t i = 0; i < kAttentionInputs; ++i) {
    if (const std::optional<GraphValue> value = node.input(i)) found.inputs[i] = value->name();
  }
  if (!node.input(kKey)) return found;
  // Whose inputs of these places queries, keys and values are.
  struct Reader {
    const GraphNode* node;
    std::size_t input;
    std::optional<GraphValue> value() const { return node->input(input); }
  } readers[] = {{&node, kQuery}, {&node, kKey}, {&node, kValue}};
  const auto rotation = [&](std::size_t input, std::int64_t heads) {
    return read.rotates ? std::nullopt : find_rotation(claims, node, input, heads);
  };
  const std::optional<GraphNode> query = rotation(kQuery, read.heads), key = rotation(kKey, read.kv_heads);
  if (query && key && are_alike(*query, *key)) {
    const std::int64_t size = query->attribute("rotary_embedding_dim", 0);
    read.rotation_size = size > 0 ? size : read.head_size;
    read.rotates = true;
    read.interleaved = query->attribute("interleaved", 0) == 1;
    found.inputs[kPositions] = query->input(1)->name();
    found.inputs[kCosines] = query->input(2)->name();
    found.inputs[kSines] = query->input(3)->name();
    readers[kQuery] = {&*query, 0};
    readers[kKey] = {&*key, 0};
    for (std::size_t i : {kQuery, kKey}) {
      found.inputs[i] = readers[i].value()->name();
      found.nodes.push_back(readers[i].node->get());
    }
  }
  const std::optional<GraphNode> split = source(claims, readers[0].value(), *readers[0].node);
  if (!split || !split->is("Split") || !splits_heads(claims, *split, read)) return found;
  for (std::size_t i = 0; i < 3; ++i) {
    const std::optional<GraphNode> same = source(claims, readers[i].value(), *readers[i].node);
    if (!same || split->output(i).name() != readers[i].value()->name()) return found;
  }
  found.inputs[kQuery] = split->required(0, "input").name();
  found.inputs[kKey] = found.inputs[kValue] = "";
  found.nodes.push_back(split->get());
  return found;
}

}  // namespace onnxpress
