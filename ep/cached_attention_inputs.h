// What a node of an attention says, and its inputs of a run: checked, for the kernel reads what they tell it to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cached_attention.h"
#include "ort/ort.h"

namespace onnxpress {

// Inputs; the first by their places in GroupQueryAttention.
enum AttentionInput : std::size_t {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kLengths,
  kTotalLength,
  kCosines,
  kSines,
  kPositions,
  kBias,
  kSinks,
  kNodeInputs,
  kKeyMask = kNodeInputs,
  kQueryNorm,
  kKeyNorm,
  kAttentionInputs
};

struct AttentionNode {
  std::string label;
  std::int64_t heads = 0, kv_heads = 0, head_size = 0;
  float scale = 0, softcap = 0;
  std::int64_t window = 0;
  bool is_cached = true;  // with a past, or what says that there is none; else with as many keys as are given
  bool causal = true;
  float filter_value = 0;  // added to scores of keys that the mask leaves out
  float query_epsilon = 0, key_epsilon = 0;
  bool rotates = false, interleaved = false, has_sink = false;
  std::int64_t rotation_size = 0;  // of RotaryEmbedding nodes before it; 0 where it rotates itself
};

// All of a problem but its outputs.
class AttentionInputs {
 public:
  // `values` has null where an input is absent. Throws InvalidArgument.
  AttentionInputs(const ort::Api& api, const AttentionNode& node, const ort::Value* const (&values)[kAttentionInputs]);

  CachedAttention problem;  // points into this

 private:
  void read_tokens();
  void read_past();
  void read_lengths();
  void read_whole();
  void read_rotation();
  void read_bias();
  void read_sinks();
  void read_mask();
  void read_norms();
  std::vector<std::int64_t> shape(AttentionInput input) const;
  template <class T>
  const T* data(AttentionInput input) const;
  void require(bool holds, const std::string& what) const;
  void require_shape(AttentionInput input, const char* name, const std::vector<std::int64_t>& shape) const;

  const ort::Api& api_;
  const AttentionNode& node_;
  const ort::Value* const (&values_)[kAttentionInputs];
  bool is_first_prompt_ = false;
  std::vector<std::int64_t> kept_, total_, positions_;
  std::vector<float> mask_;
};

}  // namespace onnxpress
