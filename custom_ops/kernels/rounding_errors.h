// What rounding blocks to small floating-point numbers costs: the innermost loop of the search for their scales.
#pragma once

#include <cstdint>

#include "kernels/cpu_isa.h"
#include "kernels/minifloat.h"

namespace onnxpress {

struct ScaledBlocks {
  const float* x;       // [count, size], finite
  const float* scales;  // [count], positive
  const float* growth;  // [count]: the error of x counts h = 1 + growth x^2
  std::int64_t count, size;
};

inline constexpr int kRoundingSums = 4;

// Writes [count, 4]: of q as the nearest number to x / scale, halfway cases to the even code, held to the largest, the
// sums of (q scale - x)^2, h (q scale - x)^2, h x q and h q q. The same bit for bit on every instruction set. Returns
// the name of that whose code ran.
const char* rounding_errors(const ScaledBlocks& blocks, CodeKind kind, float* sums, Isa isa);

}  // namespace onnxpress
