// Sixteen output channels side by side in a vector of the compiler's, which it maps to the registers of the
// instruction set of the file that includes this. No fused multiply-add (-ffp-contract=off): every instruction set
// must choose the same codes. Internal linkage throughout, as in matmul_nbits_impl.h.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"
#include "kernels/quantize_blocks_kernels.h"
#include "kernels/rounding_errors_impl.h"

namespace onnxpress {
namespace {

constexpr int kShrinkSteps = 12;  // 1, 0.96, ... 0.56: SHRINKS in reference.py

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
static_assert(sizeof(Lanes) == sizeof(LaneBlock::scale));

// Results come through references: by value they would need a calling convention of wide registers.
inline void load(const float* from, Lanes& to) { std::memcpy(&to, from, sizeof to); }
inline void store(const Lanes& from, float* to) { std::memcpy(to, &from, sizeof from); }

// Nearest even for |v| < 2^22, with no call of the C library: adding 1.5 * 2^23 leaves no bits for a fraction.
constexpr float kRounder = 12582912.0f;

inline float clamp(float v, float low, float high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

// To the stored type, within its range. Subnormal scales become 0: their reciprocal would be infinite.
inline void round_scales(const BlockScheme& scheme, Lanes& scale) {
  if (scheme.half_scales) {
    for (int c = 0; c < kLanes; ++c) scale[c] = half_to_float(float_to_half(clamp(scale[c], -65504.0f, 65504.0f)));
  } else {
    const Lanes zero = {};
    scale = (scale < FLT_MIN) & (scale > -FLT_MIN) ? zero : scale;
  }
}

inline void reciprocals(const Lanes& v, Lanes& out) {
  const Lanes zero = {};
  out = v != zero ? 1.0f / v : zero;
}

struct Candidate {
  Lanes scale, zero_point, error;
};

// Nearest codes at the scale and zero point of the candidate, and their squared error.
inline void round_codes(const LaneBlock& b, std::int64_t size, float levels, Candidate& candidate, float* codes) {
  const Lanes low = {}, high = low + levels, scale = candidate.scale, zero = candidate.zero_point;
  Lanes inverse, total = {};
  reciprocals(scale, inverse);
  for (std::int64_t k = 0; k < size; ++k) {
    Lanes value;
    load(b.x + k * kLanes, value);
    Lanes code = value * inverse + zero;
    code = code < low ? low : code;
    code = code > high ? high : code;
    code = (code + kRounder) - kRounder;
    const Lanes difference = (code - zero) * scale - value;
    total += difference * difference;
    store(code, codes + k * kLanes);
  }
  candidate.error = total;
}

// The scale of least squared error for the codes in b.trial: sum(x q) / sum(q q).
inline void refine_scale(const BlockScheme& scheme, const LaneBlock& b, Candidate& candidate) {
  const Lanes none = {};
  Lanes above = {}, below = {};
  for (std::int64_t k = 0; k < scheme.block_size; ++k) {
    Lanes value, code;
    load(b.x + k * kLanes, value);
    load(b.trial + k * kLanes, code);
    const Lanes q = code - candidate.zero_point;
    above += value * q;
    below += q * q;
  }
  candidate.scale = below > none ? above / below : none;
  round_scales(scheme, candidate.scale);
}

// Takes the codes in b.trial over where they are better.
inline void keep_better(const BlockScheme& scheme, const Candidate& candidate, Candidate& best, LaneBlock& b) {
  const auto better = candidate.error < best.error;
  bool any = false;
  for (int c = 0; c < kLanes; ++c) any |= better[c] != 0;
  if (!any) return;
  for (std::int64_t k = 0; k < scheme.block_size; ++k) {
    Lanes found, kept;
    load(b.trial + k * kLanes, found);
    load(b.codes + k * kLanes, kept);
    store(better ? found : kept, b.codes + k * kLanes);
  }
  best.scale = better ? candidate.scale : best.scale;
  best.zero_point = better ? candidate.zero_point : best.zero_point;
  best.error = better ? candidate.error : best.error;
}

void quantize_block(const BlockScheme& scheme, LaneBlock& b) {
  const float levels = static_cast<float>((1 << scheme.bits) - 1);
  const float middle = static_cast<float>(1 << (scheme.bits - 1));
  const Lanes none = {};
  Lanes low = {}, high = {};
  for (std::int64_t k = 0; k < scheme.block_size; ++k) {
    Lanes value;
    load(b.x + k * kLanes, value);
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  const auto propose = [&](float shrink, Candidate& candidate) {
    if (scheme.symmetric) {
      const Lanes extreme = high > -low ? high : low;
      candidate.scale = extreme * shrink / -middle;
      round_scales(scheme, candidate.scale);
      candidate.zero_point = none + middle;
      return;
    }
    candidate.scale = high * shrink / levels - low * shrink / levels;
    round_scales(scheme, candidate.scale);
    Lanes zero;
    reciprocals(candidate.scale, zero);
    zero = -low * shrink * zero;
    zero = zero > levels ? none + levels : zero;
    candidate.zero_point = (zero + kRounder) - kRounder;
  };
  Candidate best, trial;
  propose(1.0f, best);
  round_codes(b, scheme.block_size, levels, best, b.codes);
  store(best.error, b.baseline);
  for (int step = 0; scheme.search && step < kShrinkSteps; ++step) {
    propose(static_cast<float>(1.0 - 0.04 * step), trial);
    round_codes(b, scheme.block_size, levels, trial, b.trial);
    keep_better(scheme, trial, best, b);
    refine_scale(scheme, b, trial);
    round_codes(b, scheme.block_size, levels, trial, b.trial);
    keep_better(scheme, trial, best, b);
  }
  store(best.scale, b.scale);
  store(best.zero_point, b.zero_point);
  store(best.error, b.error);
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

constexpr QuantizeKernels make_quantize_kernels(const char* isa) {
  return {isa, quantize_block, finite_float, finite_half, halves_to_floats, rounding_errors};
}

}  // namespace
}  // namespace onnxpress
