// A vector's numbers put together, in the same order on every instruction set.
#pragma once

#include <cstdint>

#include "kernels/tile.h"

namespace onnxpress {
namespace {

template <class Join>
__attribute__((always_inline)) inline float fold(float (&lanes)[kTile], const Join& join) {
  for (std::int64_t half = kTile / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) lanes[i] = join(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}
inline float sum_of(float a, float b) { return a + b; }
inline float least_of(float a, float b) { return b < a ? b : a; }
inline float most_of(float a, float b) { return b > a ? b : a; }

template <class S>
float total_of(typename S::F32 v) {
  alignas(64) float lanes[kTile];
  S::store(lanes, v);
  return fold(lanes, sum_of);
}

}  // namespace
}  // namespace onnxpress
