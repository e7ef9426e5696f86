// The table of functions that every instruction set fills.
#pragma once

#include <cstdint>

#include "kernels/matmul_nbits.h"

namespace onnxpress {

// Rows of A as int8 per row and block: value = code * scale, and the sum of each block's codes.
struct QuantizedRows {
  std::int8_t* codes;      // [M, row_bytes]
  float* scales;           // [blocks, stride]
  std::int32_t* sums;      // [blocks, stride]
  std::int64_t row_bytes;  // padded_k or more
  std::int64_t stride;     // M or more
};

// Rows of A as bfloat16, and the sum of each block.
struct BFloat16Rows {
  std::uint16_t* values;  // [M, padded_k], each four of k in the order 0, 2, 1, 3
  float* sums;            // [M, blocks]
};

struct NBitsInt8Kernels {
  const char* isa;
  std::int64_t row_step;  // so many rows are read from any on, whether there are as many or not
  void (*quantize_row)(const NBitsProblem&, const QuantizedRows&, std::int64_t row);
  // Rows [begin, end) times `tiles` tiles, straight from the packed weight. Indexed by bits.
  void (*stream[9])(const NBitsProblem&, const QuantizedRows&, std::int64_t first_tile, std::int64_t tiles,
                    std::int64_t begin, std::int64_t end);
  // What limits them: multiply-adds of `rounds` rounds of dot products out of registers.
  std::int64_t (*spin_dots)(const std::uint8_t* lines, std::int64_t rounds, float* sink);
};

struct NBitsFloatKernels {
  const char* isa;
  // One row times `tiles` tiles, straight from the packed weight. Indexed by bits.
  void (*row[9])(const NBitsProblem&, std::int64_t first_tile, std::int64_t tiles);
  // Rows [begin, end) times one panel of `panel_tiles` tiles, which is unpacked first.
  void (*panel[9])(const NBitsProblem&, std::int64_t first_tile, std::int64_t begin, std::int64_t end);
  std::int64_t panel_tiles;
  // What follows the sums of rows [begin, end) times `tiles` tiles.
  void (*activate)(const NBitsProblem&, std::int64_t first_tile, std::int64_t tiles, std::int64_t begin,
                   std::int64_t end);
  // Reads memory, which limits all.
  void (*read)(const std::uint8_t* bytes, std::int64_t count, std::uint8_t* sink);
  void (*to_float)(const std::uint16_t*, float*, std::int64_t);
  void (*to_half)(const float*, std::uint16_t*, std::int64_t);
};

// The same for activations as bfloat16; few instruction sets have it.
struct NBitsBFloat16Kernels {
  const char* isa;
  void (*round_row)(const NBitsProblem&, const BFloat16Rows&, std::int64_t row);
  void (*row[9])(const NBitsProblem&, const BFloat16Rows&, std::int64_t first_tile, std::int64_t tiles);
  void (*panel[9])(const NBitsProblem&, const BFloat16Rows&, std::int64_t first_tile, std::int64_t begin,
                   std::int64_t end);
  std::int64_t panel_tiles;
};

// Each instruction set has those that gain by it.
const NBitsInt8Kernels& nbits_int8_scalar();
const NBitsFloatKernels& nbits_float_scalar();
#if defined(__x86_64__)
const NBitsInt8Kernels& nbits_int8_avx2();
const NBitsFloatKernels& nbits_float_avx2();
const NBitsInt8Kernels& nbits_int8_avxvnni();
const NBitsInt8Kernels& nbits_int8_avx512vnni();
const NBitsInt8Kernels& nbits_int8_amx();
const NBitsFloatKernels& nbits_float_avx512vnni();
const NBitsBFloat16Kernels& nbits_bfloat16_avx512bf16();
#elif defined(__aarch64__)
const NBitsInt8Kernels& nbits_int8_neon();
const NBitsFloatKernels& nbits_float_neon();
#endif

// The best not above `isa`.
const NBitsInt8Kernels& nbits_int8(Isa isa);
const NBitsFloatKernels& nbits_float(Isa isa);
// Null where there are none, or float32 is faster.
const NBitsBFloat16Kernels* nbits_bfloat16(Isa isa);

}  // namespace onnxpress
