// The table of functions that every instruction set fills for cached_attention.
#pragma once

#include <cstdint>

#include "kernels/cached_attention.h"

namespace onnxpress {

inline constexpr std::int64_t kAttentionRows = 32;

// Rows of queries that read the same keys.
struct AttentionTile {
  std::int64_t rows, head_size;
  std::int64_t begin, end;             // the keys that any of them sees
  const float* queries;                // [rows, head_size], scaled
  const float *keys, *values;          // from key 0 on [keys, head_size]
  float softcap;                       // 0 for none
  std::int64_t first[kAttentionRows];  // keys of each row: from this
  std::int64_t last[kAttentionRows];   // up to this
  const float* bias[kAttentionRows];   // from key 0 on, or null
  float *peaks, *totals, *sums;        // [rows], [rows] and [rows, head_size]: of e^(score - peak), alone and
                                       // times values
};

struct AttentionKernels {
  const char* isa;
  void (*attend)(const AttentionTile&);
};

}  // namespace onnxpress
