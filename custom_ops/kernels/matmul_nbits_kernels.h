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
  std::uint16_t* values;    // [M, row_values], each four of k in the order 0, 2, 1, 3
  float* sums;              // [blocks, stride]
  std::int64_t row_values;  // padded_k or more
  std::int64_t stride;      // M or more
};

// What kernels need of a problem.
struct NBitsNeeds {
  std::int64_t min_rows = 0;
  std::int64_t block_multiple = 1;  // the block size must be a multiple of it
};

struct NBitsInt8Kernels {
  const char* isa;
  NBitsNeeds needs;
  std::int64_t row_step;  // so many rows are read from any on, whether there are as many or not
  void (*quantize_row)(const NBitsProblem&, const QuantizedRows&, std::int64_t row);
  // Rows [begin, end) times `tiles` tiles, straight from the packed weight. Indexed by bits.
  void (*stream[9])(const NBitsProblem&, const QuantizedRows&, std::int64_t first_tile, std::int64_t tiles,
                    std::int64_t begin, std::int64_t end);
  // What limits them: multiply-adds of `rounds` rounds of dot products out of registers.
  std::int64_t (*spin_dots)(const std::uint8_t* lines, std::int64_t rounds, float* sink);
};

// Products in float32 for one kind of codes.
struct NBitsFloatProduct {
  const char* isa = nullptr;
  NBitsNeeds needs;
  std::int64_t panel_tiles = 0;
  // One row times `tiles` tiles, straight from the packed weight.
  void (*row)(const NBitsProblem&, std::int64_t first_tile, std::int64_t tiles) = nullptr;
  // Rows [begin, end) times one panel of `panel_tiles` tiles, which is unpacked first.
  void (*panel)(const NBitsProblem&, std::int64_t first_tile, std::int64_t begin, std::int64_t end) = nullptr;
};

struct NBitsFloatKernels {
  const char* isa;
  NBitsFloatProduct products[9];  // by bits
  // What follows the sums of rows [begin, end) times `tiles` tiles.
  void (*activate)(const NBitsProblem&, std::int64_t first_tile, std::int64_t tiles, std::int64_t begin,
                   std::int64_t end);
  void (*normalize_row)(const float* x, const RmsNorm& norm, std::int64_t count, float* out);
  // Columns [first, end) of the outputs of a gated linear unit, in some rows, from the sums [M, N] before it.
  void (*join_halves)(const float* sums, const NBitsProblem&, std::int64_t first, std::int64_t end,
                      std::int64_t first_row, std::int64_t end_row);
  // Reads memory, which limits all.
  void (*read)(const std::uint8_t* bytes, std::int64_t count, std::uint8_t* sink);
  void (*to_float)(const std::uint16_t*, float*, std::int64_t);
  void (*to_half)(const float*, std::uint16_t*, std::int64_t);

  const NBitsFloatProduct& product(const NBitsWeight& weight) const { return products[weight.bits]; }
};

// The same for activations as bfloat16; few instruction sets have it.
struct NBitsBFloat16Product {
  const char* isa = nullptr;
  NBitsNeeds needs;
  std::int64_t row_step = 0;  // as above
  std::int64_t panel_tiles = 0;
  void (*round_row)(const NBitsProblem&, const BFloat16Rows&, std::int64_t row) = nullptr;
  void (*row)(const NBitsProblem&, const BFloat16Rows&, std::int64_t first_tile, std::int64_t tiles) = nullptr;
  void (*panel)(const NBitsProblem&, const BFloat16Rows&, std::int64_t first_tile, std::int64_t begin,
                std::int64_t end) = nullptr;
};

struct NBitsBFloat16Kernels {
  NBitsBFloat16Product products[9];  // by bits

  const NBitsBFloat16Product& product(const NBitsWeight& weight) const { return products[weight.bits]; }
};

// The products for codes that are floating-point numbers, in the order of kMiniFloats.
struct MiniFloatKernels {
  NBitsFloatProduct products[kMiniFloatFormats];

  const NBitsFloatProduct& product(const NBitsWeight& weight) const { return products[index_of(weight.kind)]; }
};

struct MiniFloatBFloat16Kernels {
  NBitsBFloat16Product products[kMiniFloatFormats];

  const NBitsBFloat16Product& product(const NBitsWeight& weight) const { return products[index_of(weight.kind)]; }
};

// Asserted of tables that are to have every format: one that is left out of the list of products has none.
template <class Kernels>
static constexpr bool has_all_formats(const Kernels& kernels) {
  for (const auto& product : kernels.products) {
    if (product.isa == nullptr) return false;
  }
  return true;
}

}  // namespace onnxpress
