#include "attention_sources.h"

#include <algorithm>
#include <optional>

namespace onnxpress {
namespace {

// Whose input of this place queries, keys or values are.
struct Reader {
  const ort::Node* node;
  std::size_t input;

  std::optional<GraphValue> value(const Claims& claims) const { return GraphNode(claims.api, node).input(input); }
};

// The node that makes what a reader alone reads, perhaps in several places, if nobody has it yet.
std::optional<GraphNode> source(const Claims& claims, const Reader& reader) {
  const std::optional<GraphValue> value = reader.value(claims);
  const ort::Node* producer = value ? claims.graph.producer(*value) : nullptr;
  if (producer == nullptr || !claims.is_free(producer)) return std::nullopt;
  const std::vector<const ort::Node*> readers = claims.graph.readers(*value);
  const auto is_it = [&](const ort::Node* node) { return node == reader.node; };
  if (readers.empty() || !std::all_of(readers.begin(), readers.end(), is_it)) return std::nullopt;
  return GraphNode(claims.api, producer);
}

// Whether a constant of integers is one of those wanted. Those of a plan that is compiled are not there, but were read
// before.
bool is_one_of(const Claims& claims, const std::optional<GraphValue>& value,
               const std::vector<std::vector<std::int64_t>>& wanted) {
  if (!value) return false;
  if (claims.compiling) return true;
  const ort::Value* constant = value->constant();
  if (constant == nullptr) return false;
  const ort::TypeAndShape type = ort::type_and_shape(claims.api, constant);
  if (type.type != ort::kInt64 || type.dims.size() != 1) return false;
  const auto* given = static_cast<const std::int64_t*>(ort::data(claims.api, constant));
  const std::vector<std::int64_t> numbers(given, given + type.dims[0]);
  return std::find(wanted.begin(), wanted.end(), numbers) != wanted.end();
}

std::optional<GraphNode> find_rotation(const Claims& claims, const Reader& reader, std::int64_t heads) {
  std::optional<GraphNode> found = source(claims, reader);
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

bool splits(const Claims& claims, const GraphNode& split, const std::vector<std::int64_t>& sizes) {
  const std::int64_t axis = split.attribute("axis", 0);
  return split.is("Split") && split.outputs() == sizes.size() && (axis == -1 || axis == 2) &&
         is_one_of(claims, split.input(1), {sizes});
}

// How often each head is there, where groups of queries share them, and the nodes that repeat them.
struct Repeats {
  std::int64_t heads = 0;  // each once
  std::vector<const ort::Node*> nodes;
  Reader reader{};  // of all
};

// A Concat of one head again and again, or of those that a Split makes, each as often as the others.
std::optional<Repeats> find_repeats(const Claims& claims, const Reader& reader, const AttentionNode& read) {
  const std::optional<GraphNode> concat = source(claims, reader);
  if (!concat || !concat->is("Concat") || concat->inputs() != static_cast<std::size_t>(read.heads)) return std::nullopt;
  const std::int64_t axis = concat->attribute("axis", 0);
  if (axis != 2 && axis != -1) return std::nullopt;
  std::vector<std::string> names, once;
  for (std::size_t i = 0; i < concat->inputs(); ++i) {
    names.push_back(concat->required(i, "input").name());
    if (once.empty() || once.back() != names.back()) once.push_back(names.back());
  }
  const std::size_t group = names.size() / once.size();
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (group * once.size() != names.size() || names[i] != once[i / group]) return std::nullopt;
  }
  Repeats found{static_cast<std::int64_t>(once.size()), {concat->get()}, {concat->get(), 0}};
  if (once.size() == 1) return found;
  const std::optional<GraphNode> split = source(claims, found.reader);
  if (!split || !splits(claims, *split, std::vector<std::int64_t>(once.size(), read.head_size))) return std::nullopt;
  for (std::size_t i = 0; i < once.size(); ++i) {
    const std::optional<GraphNode> same = source(claims, {concat->get(), i * group});
    if (!same || split->output(i).name() != once[i]) return std::nullopt;
  }
  found.nodes.push_back(split->get());
  found.reader = {split->get(), 0};
  return found;
}

// A norm of each head by the root mean square, and the nodes that split heads ahead of it and merge them behind.
struct FoundNorm {
  std::vector<const ort::Node*> nodes;
  std::string scale;
  float epsilon = 0;
  Reader reader{};  // of what is split
};

std::optional<FoundNorm> find_norm(const Claims& claims, const Reader& reader, const AttentionNode& read,
                                   std::int64_t heads) {
  const std::int64_t width = read.head_size, columns = heads * width;
  const std::optional<GraphNode> merge = source(claims, reader);
  if (!merge || !merge->is("Reshape") || !is_one_of(claims, merge->input(1), {{0, 0, columns}, {0, 0, -1}})) {
    return std::nullopt;
  }
  const std::optional<GraphNode> norm = source(claims, {merge->get(), 0});
  if (!norm || !(norm->is("SimplifiedLayerNormalization") || norm->is("RMSNormalization"))) return std::nullopt;
  const std::int64_t axis = norm->attribute("axis", -1), type = norm->attribute("stash_type", 1);
  const std::optional<GraphValue> scale = norm->input(1);
  if ((axis != -1 && axis != 3) || type != ort::kFloat || norm->outputs() != 1 || !scale) return std::nullopt;
  const ValueType of_scale = scale->type();
  if (of_scale.element != ort::kFloat || of_scale.dims.size() != 1 || of_scale.dims[0].size != width) {
    return std::nullopt;
  }
  const std::optional<GraphNode> split = source(claims, {norm->get(), 0});
  if (!split || !split->is("Reshape") ||
      !is_one_of(claims, split->input(1), {{0, 0, heads, width}, {0, 0, -1, width}, {0, 0, heads, -1}})) {
    return std::nullopt;
  }
  const ValueType whole = split->required(0, "input").type();
  if (whole.dims.size() != 3 || whole.dims[2].size != columns) return std::nullopt;
  return FoundNorm{{merge->get(), norm->get(), split->get()},
                   scale->name(),
                   norm->float_attribute("epsilon", 1e-5f),
                   {split->get(), 0}};
}

}  // namespace

void look_ahead(const Claims& claims, const GraphNode& node, AttentionNode& read, AttentionSources& found) {
  Reader readers[] = {{node.get(), kQuery}, {node.get(), kKey}, {node.get(), kValue}};
  const auto add = [&](const std::vector<const ort::Node*>& nodes) {
    found.nodes.insert(found.nodes.end(), nodes.begin(), nodes.end());
  };
  if (read.kv_heads == read.heads) {
    const std::optional<Repeats> keys = find_repeats(claims, readers[kKey], read),
                                 values = find_repeats(claims, readers[kValue], read);
    if (keys && values && keys->heads == values->heads && keys->nodes.front() != values->nodes.front()) {
      read.kv_heads = keys->heads;
      add(keys->nodes);
      add(values->nodes);
      readers[kKey] = keys->reader;
      readers[kValue] = values->reader;
    }
  }
  if (!read.rotates) {
    const std::optional<GraphNode> query = find_rotation(claims, readers[kQuery], read.heads),
                                   key = find_rotation(claims, readers[kKey], read.kv_heads);
    if (query && key && are_alike(*query, *key)) {
      const std::int64_t size = query->attribute("rotary_embedding_dim", 0);
      read.rotation_size = size > 0 ? size : read.head_size;
      read.rotates = true;
      read.interleaved = query->attribute("interleaved", 0) == 1;
      found.inputs[kPositions] = query->input(1)->name();
      found.inputs[kCosines] = query->input(2)->name();
      found.inputs[kSines] = query->input(3)->name();
      add({query->get(), key->get()});
      readers[kQuery] = {query->get(), 0};
      readers[kKey] = {key->get(), 0};
    }
  }
  if (const std::optional<FoundNorm> norm = find_norm(claims, readers[kQuery], read, read.heads)) {
    add(norm->nodes);
    readers[kQuery] = norm->reader;
    found.inputs[kQueryNorm] = norm->scale;
    read.query_epsilon = norm->epsilon;
  }
  if (const std::optional<FoundNorm> norm = find_norm(claims, readers[kKey], read, read.kv_heads)) {
    add(norm->nodes);
    readers[kKey] = norm->reader;
    found.inputs[kKeyNorm] = norm->scale;
    read.key_epsilon = norm->epsilon;
  }
  for (std::size_t i : {kQuery, kKey, kValue}) found.inputs[i] = readers[i].value(claims)->name();
  const std::optional<GraphNode> split = source(claims, readers[kQuery]);
  const std::int64_t wide = read.heads * read.head_size, narrow = read.kv_heads * read.head_size;
  if (!split || !splits(claims, *split, {wide, narrow, narrow})) return;
  for (std::size_t i = 0; i < 3; ++i) {
    const std::optional<GraphNode> same = source(claims, readers[i]);
    if (!same || split->output(i).name() != found.inputs[i]) return;
  }
  found.inputs[kQuery] = split->required(0, "input").name();
  found.inputs[kKey] = found.inputs[kValue] = "";
  found.nodes.push_back(split->get());
}

}  // namespace onnxpress
