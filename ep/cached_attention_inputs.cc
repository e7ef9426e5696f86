#include "cached_attention_inputs.h"

#include <algorithm>

namespace onnxpress {
namespace {

std::int64_t count_of(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (std::int64_t size : shape) count *= size;
  return count;
}

}  // namespace

AttentionInputs::AttentionInputs(const ort::Api& api, const AttentionNode& node,
                                 const ort::Value* const (&values)[kAttentionInputs])
    : api_(api), node_(node), values_(values) {
  problem.heads = node.heads;
  problem.kv_heads = node.kv_heads;
  problem.head_size = node.head_size;
  problem.scale = node.scale;
  problem.softcap = node.softcap;
  problem.window = node.window;
  problem.has_sink = node.has_sink;
  problem.causal = node.causal;
  read_tokens();
  if (node.is_cached) {
    read_past();
    read_lengths();
  } else {
    read_whole();
  }
  read_norms();
  if (node.rotates) read_rotation();
  if (values[kBias] != nullptr) read_bias();
  if (values[kKeyMask] != nullptr) read_mask();
  if (values[kSinks] != nullptr) read_sinks();
}

void AttentionInputs::read_tokens() {
  const std::vector<std::int64_t> query = shape(kQuery);
  require(query.size() == 3, "query has not three axes");
  CachedAttention& a = problem;
  a.batch = query[0];
  a.tokens = a.new_keys = query[1];
  const std::int64_t wide = a.heads * a.head_size, narrow = a.kv_heads * a.head_size;
  a.query = data<float>(kQuery);
  if (values_[kKey] == nullptr) {
    require_shape(kQuery, "query", {a.batch, a.tokens, wide + 2 * narrow});
    a.key = a.query + wide;
    a.value = a.key + narrow;
    a.query_stride = a.key_stride = wide + 2 * narrow;
    return;
  }
  require_shape(kQuery, "query", {a.batch, a.tokens, wide});
  if (!node_.is_cached) {
    const std::vector<std::int64_t> key = shape(kKey);
    require(key.size() == 3, "key has not three axes");
    a.new_keys = key[1];
  }
  require_shape(kKey, "key", {a.batch, a.new_keys, narrow});
  require_shape(kValue, "value", {a.batch, a.new_keys, narrow});
  a.key = data<float>(kKey);
  a.value = data<float>(kValue);
  a.query_stride = wide;
  a.key_stride = narrow;
}

void AttentionInputs::read_past() {
  CachedAttention& a = problem;
  if (values_[kPastKey] != nullptr) {
    const std::vector<std::int64_t> past = shape(kPastKey);
    require(past.size() == 4, "past_key has not four axes");
    a.past_size = past[2];
    require_shape(kPastKey, "past_key", {a.batch, a.kv_heads, a.past_size, a.head_size});
    require_shape(kPastValue, "past_value", {a.batch, a.kv_heads, a.past_size, a.head_size});
    a.past_key = data<float>(kPastKey);
    a.past_value = data<float>(kPastValue);
  }
  require(count_of(shape(kTotalLength)) == 1, "total_sequence_length is not one number");
  const std::int64_t total = *data<std::int32_t>(kTotalLength);
  require(total >= 0, "total_sequence_length is " + std::to_string(total));
  a.present_size = std::max(a.past_size, total);
}

void AttentionInputs::read_lengths() {
  CachedAttention& a = problem;
  require(count_of(shape(kLengths)) == a.batch, "seqlens_k has shape " + ort::to_string(shape(kLengths)) +
                                                    ", must have a number for each of " + std::to_string(a.batch) +
                                                    " rows");
  const std::int32_t* lengths = data<std::int32_t>(kLengths);
  // As ONNX Runtime has it: of a first prompt nothing is kept, whatever the size of the buffer.
  const bool is_first = is_first_prompt_ = a.tokens == *data<std::int32_t>(kTotalLength);
  for (std::int64_t row = 0; row < a.batch; ++row) {
    const std::int64_t total = std::int64_t{lengths[row]} + 1, kept = is_first ? 0 : total - a.tokens;
    const std::int64_t least = is_first ? std::min<std::int64_t>(a.tokens, 1) : a.tokens;
    const std::int64_t most = is_first ? a.tokens : std::min(a.past_size + a.tokens, a.present_size);
    require(least <= total && total <= most,
            "seqlens_k has " + std::to_string(total - 1) + " for row " + std::to_string(row) + ", must be " +
                std::to_string(least - 1) + " to " + std::to_string(most - 1) + " for " + std::to_string(a.tokens) +
                " new tokens, a past of " + std::to_string(a.past_size) + " and a total_sequence_length of " +
                std::to_string(*data<std::int32_t>(kTotalLength)));
    kept_.push_back(kept);
    total_.push_back(total);
  }
  a.kept = kept_.data();
  a.total = total_.data();
}

// All keys and values are given, and nothing is kept.
void AttentionInputs::read_whole() {
  CachedAttention& a = problem;
  a.present_size = a.new_keys;
  kept_.assign(static_cast<std::size_t>(a.batch), 0);
  total_.assign(static_cast<std::size_t>(a.batch), a.new_keys);
  a.kept = kept_.data();
  a.total = total_.data();
}

void AttentionInputs::read_norms() {
  const auto read = [&](AttentionInput input, const char* name, float epsilon) {
    if (values_[input] == nullptr) return HeadNorm{};
    require_shape(input, name, {problem.head_size});
    return HeadNorm{data<float>(input), epsilon};
  };
  problem.query_norm = read(kQueryNorm, "the norm of queries", node_.query_epsilon);
  problem.key_norm = read(kKeyNorm, "the norm of keys", node_.key_epsilon);
}

void AttentionInputs::read_rotation() {
  CachedAttention& a = problem;
  const std::vector<std::int64_t> table = shape(kCosines);
  require(table.size() == 2 && 2 * table[1] <= a.head_size,
          "cos_cache has shape " + ort::to_string(table) + ", must be positions by up to half of a head");
  require_shape(kSines, "sin_cache", table);
  const bool rotates_itself = node_.rotation_size == 0;
  require(rotates_itself || 2 * table[1] == node_.rotation_size,
          "cos_cache has shape " + ort::to_string(table) + ", must have " + std::to_string(node_.rotation_size / 2) +
              " columns");
  a.rotation.size = 2 * table[1];
  a.rotation.interleaved = node_.interleaved;
  a.rotation.cosines = data<float>(kCosines);
  a.rotation.sines = data<float>(kSines);
  const auto check_position = [&](std::int64_t position) {
    require(0 <= position && position < table[0],
            "a token has position " + std::to_string(position) + ", cos_cache has " + std::to_string(table[0]));
  };
  if (values_[kPositions] != nullptr) {
    // As the operators have it: of a first prompt only the very first position counts, and before RotaryEmbedding one
    // may stand for all.
    const bool is_one = !rotates_itself && shape(kPositions).size() == 1;
    const bool counts_on = is_one || (rotates_itself && is_first_prompt_);
    require_shape(kPositions, "position_ids", is_one ? std::vector<std::int64_t>{1} : std::vector{a.batch, a.tokens});
    const std::int64_t tokens = std::max(a.tokens, a.new_keys), count = a.batch * tokens;
    require(is_one || a.tokens == a.new_keys, "it has another number of positions than of keys");
    const std::int64_t* given = data<std::int64_t>(kPositions);
    if (counts_on && count > 0) check_position(given[0]);
    for (std::int64_t i = 0; i < count; ++i) positions_.push_back(counts_on ? given[0] + i % tokens : given[i]);
    for (std::int64_t position : positions_) check_position(position);
    a.rotation.positions = positions_.data();
  } else if (a.tokens > 0) {
    for (std::int64_t kept : kept_) check_position(kept + a.tokens - 1);
  }
}

void AttentionInputs::read_bias() {
  CachedAttention& a = problem;
  const std::vector<std::int64_t> bias = shape(kBias);
  std::int64_t keys = 0;
  for (std::int64_t total : total_) keys = std::max(keys, total);
  require(bias.size() == 4 && (bias[0] == 1 || bias[0] == a.batch) && (bias[1] == 1 || bias[1] == a.heads) &&
              bias[2] == a.tokens && bias[3] >= keys,
          "attention_bias has shape " + ort::to_string(bias) + ", does not fit " +
              ort::to_string({a.batch, a.heads, a.tokens, keys}));
  a.bias.values = data<float>(kBias);
  a.bias.token_stride = bias[3];
  if (bias[1] != 1) a.bias.head_stride = bias[2] * bias[3];
  if (bias[0] != 1) a.bias.batch_stride = bias[1] * bias[2] * bias[3];
}

// As a bias that all heads and queries share.
void AttentionInputs::read_mask() {
  CachedAttention& a = problem;
  require_shape(kKeyMask, "key_padding_mask", {a.batch, a.new_keys});
  const std::int32_t* counts = data<std::int32_t>(kKeyMask);
  for (std::int64_t i = 0; i < a.batch * a.new_keys; ++i) mask_.push_back(counts[i] > 0 ? 0.0f : node_.filter_value);
  a.bias.values = mask_.data();
  a.bias.batch_stride = a.new_keys;
}

void AttentionInputs::read_sinks() {
  require_shape(kSinks, "head_sink", {problem.heads});
  problem.sinks = data<float>(kSinks);
}

std::vector<std::int64_t> AttentionInputs::shape(AttentionInput input) const {
  return ort::type_and_shape(api_, values_[input]).dims;
}

template <class T>
const T* AttentionInputs::data(AttentionInput input) const {
  return static_cast<const T*>(ort::data(api_, values_[input]));
}

void AttentionInputs::require(bool holds, const std::string& what) const {
  if (!holds) throw ort::InvalidArgument(node_.label + ": " + what);
}

void AttentionInputs::require_shape(AttentionInput input, const char* name,
                                    const std::vector<std::int64_t>& wanted) const {
  const std::vector<std::int64_t> found = shape(input);
  require(found == wanted,
          std::string(name) + " has shape " + ort::to_string(found) + ", must be " + ort::to_string(wanted));
}

}  // namespace onnxpress
