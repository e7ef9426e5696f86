// The table of functions that every instruction set fills for matmul_int8.
#pragma once

#include <cstdint>

#include "kernels/matmul_int8.h"

namespace onnxpress {

// Rows of A as uint8 (int8 codes and their zero point are moved up by 128), in lines of 64 k with zeros behind K.
struct Int8Rows {
  std::uint8_t* codes;
  std::int32_t* sums;      // [M]: over k, of code - zero point; unused where the weight has no zero points
  std::int64_t row_bytes;  // from one row to the next, or
  std::int64_t padded_k;   // in tiles: of 16 rows [padded_k / 64, 16, 64]
  bool in_tiles;
  std::int32_t zero_point;  // of the codes as they are here
};

// From floats to codes: rint(value / scale) + zero_point, within [0, 255], then `flip` (128 for int8) on each.
struct CodeFormat {
  float scale;
  float inverse;  // 1 / scale
  std::int32_t zero_point;
  std::uint8_t flip;
};

// value * (1 / scale) is value / scale within 2^-12 where that is within 512. Only where the product is so close to the
// middle between two integers, or no number, can they round to different codes, and the division is worth its time.
constexpr float kSurelyRounded = 0.4995f;

struct Range {
  float low, high;
};

struct Int8Kernels {
  const char* isa;
  Int8Dots dots;
  std::int64_t min_rows;       // of the problems that they are for
  std::int64_t work_per_task;  // multiply-adds
  // Tasks begin at multiples of this many rows, and that many may be read where M ends.
  std::int64_t row_step;
  bool in_tiles;
  void (*load_row)(const Int8Problem&, const Int8Rows&, std::int64_t row);
  // Rows [begin, end) times `tiles` tiles.
  void (*multiply)(const Int8Problem&, const Int8Rows&, std::int64_t first_tile, std::int64_t tiles, std::int64_t begin,
                   std::int64_t end);
  // The least and the greatest of zero and the values.
  Range (*range)(const float* values, std::int64_t count);
};

}  // namespace onnxpress
