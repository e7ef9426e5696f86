// The table of functions that every instruction set fills for cached_attention.
#pragma once

#include <cstdint>

#include "kernels/cached_attention.h"

namespace onnxpress {

inline constexpr std::int64_t kAttentionRows = 64;  // of a tile, at most

// Keys and values of a head that are packed for kernels that multiply tiles: so many keys after so many.
inline constexpr std::int64_t kPackedKeys = 32;
inline constexpr std::int64_t packed_width(std::int64_t head_size) { return (head_size + 31) / 32 * 32; }
// bfloat16 of kPackedKeys keys, or values: what is high, and what is low.
inline constexpr std::int64_t packed_size(std::int64_t head_size) { return kPackedKeys * packed_width(head_size) * 2; }

// Rows of queries that read the same keys.
struct AttentionTile {
  std::int64_t rows, head_size;
  std::int64_t begin, end;                       // the keys that any of them sees
  const float* queries;                          // [rows, head_size], scaled
  const float *keys, *values;                    // from key 0 on [keys, head_size]
  const std::uint16_t *key_tiles, *value_tiles;  // of the same, where kernels pack them
  float softcap;                                 // 0 for none
  std::int64_t first[kAttentionRows];            // keys of each row: from this
  std::int64_t last[kAttentionRows];             // up to this
  const float* bias[kAttentionRows];             // from key 0 on, or null
  float *peaks, *totals, *sums;                  // [rows], [rows] and [rows, head_size]: of e^(score - peak), alone and
                                                 // times values
};

struct AttentionKernels {
  const char* isa;
  std::int64_t min_rows;  // of queries that share a head of keys and values: below others are faster
  std::int64_t rows;      // of a tile
  // Packs `count` keys and values, or zeros up to kPackedKeys, into packed_size(head_size) numbers each; null where
  // they are read as they are.
  void (*pack)(const float* keys, const float* values, std::int64_t count, std::int64_t head_size,
               std::uint16_t* key_tiles, std::uint16_t* value_tiles);
  void (*attend)(const AttentionTile&);
};

}  // namespace onnxpress
