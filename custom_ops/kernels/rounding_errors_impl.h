// Sixteen numbers of a block at a time in a vector of the compiler's, as in quantize_blocks_impl.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/quantize_blocks_kernels.h"

namespace onnxpress {
namespace {

typedef float Sixteen __attribute__((vector_size(16 * sizeof(float))));
typedef std::int32_t SixteenBits __attribute__((vector_size(16 * sizeof(std::int32_t))));

// Adding 1.5 * 2^23 steps leaves no bits below a step.
struct NearestMiniFloat {
  const RoundingRule& rule;
  __attribute__((always_inline)) void operator()(const Sixteen& x, Sixteen& q) const {
    const Sixteen zero = {}, low = zero + rule.low, high = zero + rule.high, least = zero + rule.least_power;
    q = x < low ? low : x;
    q = q > high ? high : q;
    Sixteen power = reinterpret_cast<Sixteen>(reinterpret_cast<SixteenBits>(q) & 0x7f800000);
    power = power < least ? least : power;
    const Sixteen rounder = power * rule.rounder;
    q = (q + rounder) - rounder;
  }
};

struct NearestOfTable {
  const RoundingRule& rule;
  __attribute__((always_inline)) void operator()(const Sixteen& x, Sixteen& q) const {
    const Sixteen zero = {};
    q = zero + rule.values[0];
    for (int i = 0; i + 1 < kRoundingValues; ++i) q = x > zero + rule.bounds[i] ? zero + rule.values[i + 1] : q;
  }
};

inline double total(const Sixteen& lanes) {
  float sums[16];
  std::memcpy(sums, &lanes, sizeof sums);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return static_cast<double>(sums[0]);
}

template <class Nearest>
void block_errors(const float* x, std::int64_t size, float scale, float growth, const Nearest& nearest,
                  double (&sums)[kRoundingSums]) {
  constexpr std::int64_t kStretch = 4096;  // summed in float32: 256 numbers a lane
  for (std::int64_t begin = 0; begin < size; begin += kStretch) {
    const std::int64_t end = size - begin < kStretch ? size : begin + kStretch;
    Sixteen parts[kRoundingSums] = {};
    for (std::int64_t k = begin; k < end; k += 16) {
      Sixteen value = {}, q;
      if (end - k >= 16) {
        std::memcpy(&value, x + k, sizeof value);
      } else {
        std::memcpy(&value, x + k, static_cast<std::size_t>(end - k) * sizeof(float));
      }
      nearest(value / scale, q);
      const Sixteen difference = q * scale - value, square = difference * difference;
      const Sixteen count = value * growth * value + 1.0f, weighted = count * q;
      parts[0] += square;
      parts[1] += count * square;
      parts[2] += weighted * value;
      parts[3] += weighted * q;
    }
    for (int i = 0; i < kRoundingSums; ++i) sums[i] += total(parts[i]);
  }
}

void rounding_errors(const float* x, std::int64_t size, float scale, float growth, const RoundingRule& rule,
                     double (&sums)[kRoundingSums]) {
  if (rule.is_table) {
    block_errors(x, size, scale, growth, NearestOfTable{rule}, sums);
  } else {
    block_errors(x, size, scale, growth, NearestMiniFloat{rule}, sums);
  }
}

}  // namespace
}  // namespace onnxpress
