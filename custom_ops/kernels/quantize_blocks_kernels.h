// The table of functions that every instruction set fills for quantize_blocks and rounding_errors.
#pragma once

#include <cstdint>

#include "kernels/quantize_blocks.h"
#include "kernels/rounding_errors.h"

namespace onnxpress {

inline constexpr int kLanes = 16;  // blocks of 16 output channels side by side

struct LaneBlock {
  const float* x;  // [block_size, 16]
  float* codes;    // [block_size, 16]
  float* counts;   // [block_size, 16], scratch
  // [block_size], what the squared error of each weight counts; null where that is told by its own square.
  const float* importance;
  float scale[kLanes];
  float zero_point[kLanes];
  float error[kLanes];
  float cost[kLanes];
  float baseline[kLanes];
};

inline constexpr int kRoundingValues = 16;

// Which numbers there are to round to.
struct RoundingRule {
  bool is_table;
  float low, high, least_power, rounder;                       // 1.5 * 2^23 steps of numbers from 1 to 2
  float values[kRoundingValues], bounds[kRoundingValues - 1];  // in ascending order, and where the next begins
};

struct QuantizeKernels {
  const char* isa;
  void (*block)(const BlockScheme&, LaneBlock&);
  bool (*finite_float)(const std::uint32_t*, std::int64_t);
  bool (*finite_half)(const std::uint16_t*, std::int64_t);
  void (*to_float)(const std::uint16_t*, float*, std::int64_t);
  // Adds to the sums of `rounding_errors` for one block.
  void (*errors)(const float* x, std::int64_t size, float scale, float growth, const RoundingRule&,
                 double (&sums)[kRoundingSums]);
};

}  // namespace onnxpress
