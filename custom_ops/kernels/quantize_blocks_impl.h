// Plain loops over 16 lanes, which the compiler turns into the vectors of the instruction set of the file that
// includes this. No fused multiply-add (-ffp-contract=off): every instruction set must choose the same codes.
// Internal linkage throughout, as in matmul_nbits_impl.h.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"
#include "kernels/quantize_blocks_kernels.h"

namespace onnxpress {
namespace {

constexpr int kShrinkSteps = 12;  // 1, 0.96, ... 0.56: SHRINKS in reference.py

// Nearest even for |v| < 2^22, with no call of the C library: adding 1.5 * 2^23 leaves no bits for a fraction.
inline float round_small(float v) { return (v + 12582912.0f) - 12582912.0f; }

inline float clamp(float v, float low, float high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

inline float reciprocal(float v) { return v != 0.0f ? 1.0f / v : 0.0f; }

// To the stored type, within its range. Subnormal scales become 0: their reciprocal would be infinite.
inline float round_scale(const BlockScheme& scheme, float scale) {
  if (scheme.half_scales) return half_to_float(float_to_half(clamp(scale, -65504.0f, 65504.0f)));
  return scale < FLT_MIN && scale > -FLT_MIN ? 0.0f : scale;
}

// Nearest codes at the given scales, and their squared errors.
void round_codes(const float* x, std::int64_t size, float levels, const float* scale, const float* zero, float* codes,
                 float* error) {
  float inverse[kLanes], total[kLanes] = {};
  for (int c = 0; c < kLanes; ++c) inverse[c] = reciprocal(scale[c]);
  for (std::int64_t k = 0; k < size; ++k) {
    for (int c = 0; c < kLanes; ++c) {
      const float value = x[k * kLanes + c];
      const float code = round_small(clamp(value * inverse[c] + zero[c], 0.0f, levels));
      const float difference = (code - zero[c]) * scale[c] - value;
      codes[k * kLanes + c] = code;
      total[c] += difference * difference;
    }
  }
  std::memcpy(error, total, sizeof total);
}

// The scale of least squared error for given codes: sum(x q) / sum(q q).
void refine_scale(const BlockScheme& scheme, const float* x, const float* codes, const float* zero, float* scale) {
  float above[kLanes] = {}, below[kLanes] = {};
  for (std::int64_t k = 0; k < scheme.block_size; ++k) {
    for (int c = 0; c < kLanes; ++c) {
      const float q = codes[k * kLanes + c] - zero[c];
      above[c] += x[k * kLanes + c] * q;
      below[c] += q * q;
    }
  }
  for (int c = 0; c < kLanes; ++c) {
    scale[c] = round_scale(scheme, below[c] > 0.0f ? above[c] / below[c] : 0.0f);
  }
}

void keep_better(const BlockScheme& scheme, const float* scale, const float* zero, const float* error, LaneBlock& b) {
  bool any = false;
  for (int c = 0; c < kLanes; ++c) any |= error[c] < b.error[c];
  if (!any) return;
  for (std::int64_t k = 0; k < scheme.block_size; ++k) {
    for (int c = 0; c < kLanes; ++c) {
      const std::int64_t at = k * kLanes + c;
      b.codes[at] = error[c] < b.error[c] ? b.trial[at] : b.codes[at];
    }
  }
  for (int c = 0; c < kLanes; ++c) {
    if (!(error[c] < b.error[c])) continue;
    b.scale[c] = scale[c];
    b.zero_point[c] = zero[c];
    b.error[c] = error[c];
  }
}

void quantize_block(const BlockScheme& scheme, LaneBlock& b) {
  const float levels = static_cast<float>((1 << scheme.bits) - 1);
  const float middle = static_cast<float>(1 << (scheme.bits - 1));
  float low[kLanes] = {}, high[kLanes] = {}, scale[kLanes], zero[kLanes], error[kLanes];
  for (std::int64_t k = 0; k < scheme.block_size; ++k) {
    for (int c = 0; c < kLanes; ++c) {
      const float value = b.x[k * kLanes + c];
      low[c] = value < low[c] ? value : low[c];
      high[c] = value > high[c] ? value : high[c];
    }
  }
  const auto candidate = [&](float shrink) {
    for (int c = 0; c < kLanes; ++c) {
      if (scheme.symmetric) {
        const float extreme = high[c] > -low[c] ? high[c] : low[c];
        scale[c] = round_scale(scheme, extreme * shrink / -middle);
        zero[c] = middle;
      } else {
        scale[c] = round_scale(scheme, high[c] * shrink / levels - low[c] * shrink / levels);
        zero[c] = round_small(clamp(-low[c] * shrink * reciprocal(scale[c]), 0.0f, levels));
      }
    }
  };
  candidate(1.0f);
  std::memcpy(b.scale, scale, sizeof scale);
  std::memcpy(b.zero_point, zero, sizeof zero);
  round_codes(b.x, scheme.block_size, levels, scale, zero, b.codes, b.error);
  std::memcpy(b.baseline, b.error, sizeof b.error);
  for (int step = 0; scheme.search && step < kShrinkSteps; ++step) {
    candidate(static_cast<float>(1.0 - 0.04 * step));
    round_codes(b.x, scheme.block_size, levels, scale, zero, b.trial, error);
    keep_better(scheme, scale, zero, error, b);
    refine_scale(scheme, b.x, b.trial, zero, scale);
    round_codes(b.x, scheme.block_size, levels, scale, zero, b.trial, error);
    keep_better(scheme, scale, zero, error, b);
  }
}

// NaN and infinity have all bits of the exponent set.
template <class Bits>
bool all_finite_bits(const Bits* values, std::int64_t count, Bits exponent) {
  constexpr std::int64_t kStride = 4096;  // short enough to stop early, long enough to run as vectors
  for (std::int64_t begin = 0; begin < count; begin += kStride) {
    const std::int64_t end = count - begin < kStride ? count : begin + kStride;
    int bad = 0;
    for (std::int64_t i = begin; i < end; ++i) bad |= (values[i] & exponent) == exponent;
    if (bad != 0) return false;
  }
  return true;
}

bool finite_float(const std::uint32_t* values, std::int64_t count) {
  return all_finite_bits<std::uint32_t>(values, count, 0x7f800000u);
}

bool finite_half(const std::uint16_t* values, std::int64_t count) {
  return all_finite_bits<std::uint16_t>(values, count, 0x7c00u);
}

void halves_to_floats(const std::uint16_t* halves, float* floats, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) floats[i] = half_to_float(halves[i]);
}

constexpr QuantizeKernels kQuantizeKernels{quantize_block, finite_float, finite_half, halves_to_floats};

}  // namespace
}  // namespace onnxpress
