// What rounding blocks to small floating-point numbers costs: the innermost loop of the search for their scales.
#pragma once

#include <cstdint>

#include "kernels/cpu_isa.h"
#include "kernels/minifloat.h"

namespace onnxpress {

struct ScaledBlocks {
  const float* x;       // [count, size], finite
  const float* scales;  // [count], positive
  std::int64_t count, size;
};

// [count] each, of q as the nearest number to x / scale, halfway cases to the even code, held to the largest.
struct RoundingErrors {
  float* error;  // sum (q scale - x)^2
  float* above;  // sum x q
  float* below;  // sum q q
};

// The same bit for bit on every instruction set. Returns the name of that whose code ran.
const char* rounding_errors(const ScaledBlocks& blocks, CodeKind kind, const RoundingErrors& out, Isa isa);

}  // namespace onnxpress
