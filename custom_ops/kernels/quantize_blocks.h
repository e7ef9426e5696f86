// Rounding a float weight to 2 to 8 bits in blocks along K, with a search for each block's scale.
// `quantize_block` in reference/rounding.py is the algorithm; results are the same bit for bit on every instruction
// set.
#pragma once

#include <cstdint>

#include "kernels/cpu_isa.h"

namespace onnxpress {

// What scales are rounded to before codes are chosen: kHalf are numbers of float16 where these are normal, else any.
enum class BlockScales { kFloat32, kFloat16, kHalf };

struct BlockScheme {
  int bits = 4;
  std::int64_t block_size = 32;
  bool symmetric = true;
  bool search = true;
  BlockScales scales = BlockScales::kFloat32;
};

struct WeightView {
  const void* data = nullptr;  // float32 or float16
  bool half = false;
  bool transposed = false;  // [N, K] rather than [K, N]
  std::int64_t K = 0;
  std::int64_t N = 0;
};

struct QuantizedBlocks {
  std::uint8_t* packed;       // [N, blocks, block_size * bits / 8], bit planes
  float* scales;              // [N, blocks]
  std::uint8_t* zero_points;  // [N, blocks], one code a byte
};

struct RoundingCosts {
  double error = 0;     // squared
  double cost = 0;      // what the search minimises
  double baseline = 0;  // the same of plain min/max rounding
  double energy = 0;    // of the weight
};

// Output channels [begin, end). `importance` of each input, [K] and not negative, is what its squared error counts in
// place of the weight's own square, where it is not null. Throws std::bad_alloc.
RoundingCosts quantize_blocks(const WeightView& weight, const BlockScheme& scheme, const float* importance,
                              std::int64_t begin, std::int64_t end, const QuantizedBlocks& out, Isa isa);

// Whether no value is NaN or infinite.
bool all_finite(const void* data, bool half, std::int64_t count, Isa isa);

}  // namespace onnxpress
