// Attention of new tokens on the keys and values that are kept of those before, as com.microsoft::GroupQueryAttention
// has it: groups of query heads share a head of keys and values.
//
//   keys, values = those kept, then the new ones (keys rotated)
//   y = softmax(cap(scale q k') + bias) v,  cap(x) = softcap tanh(x / softcap)
//
// of the keys up to the token's own (of all where it is not causal) and, with a window, no more than so many of them.
// The softmax is taken along the way, with the largest score so far (Milakov and Gimelshein, 2018, arXiv:1805.02867),
// so that scores are never stored. Keys and values are read once for all query heads of a group and for up to 32 rows
// of queries (64 with AMX). How work is divided follows from the sizes alone: results do not depend on the number of
// threads.
#pragma once

#include <cstdint>

#include "kernels/cpu_isa.h"
#include "kernels/parallel.h"

namespace onnxpress {

inline constexpr std::int64_t kMaxHeadSize = 256;

// Rotary position embeddings (Su et al., 2021, arXiv:2104.09864) of the first `size` numbers of a head.
struct Rotation {
  std::int64_t size = 0;  // even, 0 for none
  bool interleaved = false;
  const float* cosines = nullptr;  // [positions, size / 2]
  const float* sines = nullptr;    // the same
  // [batch, tokens, of queries or of keys if these are more], all within the table; null: the place behind what is
  // kept.
  const std::int64_t* positions = nullptr;
};

// x / sqrt(mean(x^2) + epsilon) * scale, of the numbers of a head (Zhang and Sennrich, 2019, arXiv:1910.07467).
struct HeadNorm {
  const float* scale = nullptr;  // [head_size], null for none
  float epsilon = 0;
};

// What is added to scores: value[row of the batch * batch_stride + head * head_stride + token * token_stride + key].
struct ScoreBias {
  const float* values = nullptr;
  std::int64_t batch_stride = 0, head_stride = 0, token_stride = 0;
};

struct CachedAttention {
  std::int64_t batch = 0, tokens = 0;  // tokens: new ones of each row
  std::int64_t new_keys = 0;           // of each row, as many as tokens where it is causal
  std::int64_t heads = 0, kv_heads = 0, head_size = 0;
  float scale = 1;
  float softcap = 0;             // 0 for none
  bool causal = true;            // whether a token sees no key behind its own
  std::int64_t window = 0;       // keys that a query sees at most, its own among them; 0 for all; of causal ones
  bool has_sink = false;         // whether e^sink is added to the softmax's denominator
  const float* sinks = nullptr;  // [heads], or null for zeros

  // [batch, tokens or new_keys, heads, head_size] with so many numbers from token to token.
  const float *query = nullptr, *key = nullptr, *value = nullptr;
  std::int64_t query_stride = 0, key_stride = 0;  // of values too
  HeadNorm query_norm, key_norm;                  // ahead of the rotation
  Rotation rotation;
  ScoreBias bias;

  const std::int64_t* kept = nullptr;   // [batch], tokens of the past: up to past_size
  const std::int64_t* total = nullptr;  // [batch], keys that queries may see: from 1 to kept + new_keys, or all 0
  // [batch, kv_heads, past_size, head_size] and [batch, kv_heads, present_size, head_size], which may be the same
  // memory: then only the new tokens are written. Else what lies beyond them becomes 0.
  const float *past_key = nullptr, *past_value = nullptr;
  std::int64_t past_size = 0, present_size = 0;
  float *present_key = nullptr, *present_value = nullptr;
  float* output = nullptr;  // [batch, tokens, heads * head_size]
};

// Throws std::bad_alloc. Returns the name of the instruction set whose code ran.
const char* cached_attention(const CachedAttention& a, Isa isa, const Parallel& parallel);

// Whether the code for it is more than portable loops.
bool is_attention_vectorized(Isa isa);

}  // namespace onnxpress
