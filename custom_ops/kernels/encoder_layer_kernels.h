// What encoder_layer lays out in memory, and the table of functions that every instruction set fills for it.
#pragma once

#include <cstdint>

#include "kernels/encoder_layer.h"

namespace onnxpress {

// Rows [begin, begin + count) of those that are computed, and where the keys and values of its heads lie.
struct Sequence {
  std::int64_t begin, count;
  std::int64_t tiles;       // of 16 keys
  std::int64_t first_tile;  // of its first head, tiles of all heads before it counted; head follows head
};

// Rows of the batch that are computed, one after the other, and what all of them share.
struct EncoderRun {
  const EncoderProblem* problem;
  std::int64_t rows;
  const std::int64_t* tokens;  // [rows], the row of x and y that each is
  const Sequence* sequences;
  std::int64_t sequence_count;
  std::int64_t padded_width;  // of a head, a multiple of 16
  float* qkv;                 // [rows, 3 heads * width]

  // By tile of 16 keys:
  std::int8_t* keys;       // [tiles, padded_width / 4, 16, 4]
  float* key_scales;       // [tiles, 16]; NaN where a key is no number
  std::int32_t* key_sums;  // [tiles, 16], of the codes
  std::int8_t* values;     // of a head [padded_width / 16, its keys / 4, 16, 4]
  float* value_scales;     // [sequences, heads, padded_width]
};

// Memory of one thread for the rows of a task.
struct EncoderScratch {
  std::uint8_t* codes;  // [max_rows, code_bytes]
  std::int64_t code_bytes;
  float* scales;              // [max_rows], of the codes
  std::int32_t* zero_points;  // [max_rows]
  float* context;             // [max_rows, heads * width]
  float* hidden;              // [max_rows, H]
  float* wide;                // [max_rows, F], or [max_rows, H] if that is more
  float* scores;              // [max_rows, score_stride]
  std::int64_t score_stride;  // the keys of the longest sequence, in whole tiles
  // [rows of the run], of each key what queries of this thread took, in parts of kWhole; null where nobody asks.
  std::uint64_t* received;
};

constexpr std::uint32_t kWhole = 1 << 22;                    // parts of one query: what is less is passed over
constexpr std::uint64_t kPoisoned = std::uint64_t{1} << 62;  // more than all queries of a sequence have

// Rows of a task: so many that a weight that comes from afar pays, so few that what they become stays in the L2 cache.
// Codes are read `step` rows at a time, also behind the last.
struct RowsOfTask {
  std::int64_t least, most, step;
};

// What is read behind the keys and the values of a head, times codes of 0.
constexpr std::int64_t kBehindKeys = 1 << 10;

struct EncoderKernels {
  const char* isa;
  RowsOfTask rows;
  // Of rows [begin, end) the projections to q, k and v.
  void (*project)(const EncoderRun&, const EncoderScratch&, std::int64_t begin, std::int64_t end);
  // Keys and values of a head, rounded and laid out.
  void (*pack_head)(const EncoderRun&, const Sequence&, std::int64_t head);
  // Of rows [begin, end) all that follows.
  void (*finish)(const EncoderRun&, const EncoderScratch&, std::int64_t begin, std::int64_t end);
};

}  // namespace onnxpress
