// Rows of a table of 4 or 8 bits in blocks along its rows, straight from the form in which the model stores them.
#pragma once

#include <cstdint>

#include "kernels/cpu_isa.h"
#include "kernels/parallel.h"

namespace onnxpress {

struct NBitsTable {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t block_size = 0;
  int bits = 0;                                // 4 or 8
  bool is_signed = false;                      // codes and zero points
  int zero_point = 0;                          // where there are none
  std::int64_t zero_stride = 0;                // zero points of a row and what pads them
  const std::uint8_t* codes = nullptr;         // [rows, columns] without padding, of 4 bits the low ones first
  const std::uint8_t* zero_points = nullptr;   // [rows, zero_stride] in the same way, or null
  const float* scales = nullptr;               // [rows, blocks], or
  const std::uint16_t* half_scales = nullptr;  // the same as float16

  std::int64_t blocks() const { return (columns + block_size - 1) / block_size; }
};

// The place of the first index that is neither a row nor, counted from the end, -1 to -rows; `count` where there is
// none.
std::int64_t find_outside(const NBitsTable& table, const std::int32_t* indices, std::int64_t count);
std::int64_t find_outside(const NBitsTable& table, const std::int64_t* indices, std::int64_t count);

// out[i] = (code - zero_point) * scale of row indices[i], all of which must be within the table. `out` is float32
// [count, columns], or float16 where the scales are.
void gather(const NBitsTable& table, const std::int32_t* indices, std::int64_t count, void* out, Isa isa,
            const Parallel& parallel);
void gather(const NBitsTable& table, const std::int64_t* indices, std::int64_t count, void* out, Isa isa,
            const Parallel& parallel);

}  // namespace onnxpress
