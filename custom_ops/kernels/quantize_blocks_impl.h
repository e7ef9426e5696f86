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

constexpr float kMultiples[] = {1.06f, 0.97f, 0.94f, 0.91f, 0.88f};  // MULTIPLES in reference/rounding.py
// Beyond them where data tells what errors count, and for few bits; FURTHER_MULTIPLES.
constexpr float kFurtherMultiples[] = {0.85f, 0.82f, 0.79f, 0.76f, 0.73f, 0.7f};
constexpr int kFewBits = 2;        // FEW_BITS
constexpr float kMinCount = 1.0f;  // LEAST_COUNT
constexpr float kWorth = 0.9f;     // WORTH

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

// Subnormal scales become 0: their reciprocal would be infinite.
inline void drop_subnormals(Lanes& scale) {
  const Lanes zero = {};
  scale = (scale < FLT_MIN) & (scale > -FLT_MIN) ? zero : scale;
}

// Nearest even with the 11 bits of float16, where that has a normal number.
inline void round_to_halves(Lanes& scale) {
  typedef std::uint32_t Bits __attribute__((vector_size(sizeof(Lanes))));
  Bits bits;
  std::memcpy(&bits, &scale, sizeof(bits));
  bits = (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu;
  Lanes rounded;
  std::memcpy(&rounded, &bits, sizeof(bits));
  const Lanes size = rounded < 0.0f ? -rounded : rounded;
  scale = (size >= 0x1p-14f) & (size <= 65504.0f) ? rounded : scale;
}

// To the stored type, within its range.
inline void round_scales(const BlockScheme& scheme, Lanes& scale) {
  if (scheme.scales == BlockScales::kFloat16) {
    for (int c = 0; c < kLanes; ++c) scale[c] = half_to_float(float_to_half(clamp(scale[c], -65504.0f, 65504.0f)));
  } else {
    if (scheme.scales == BlockScales::kHalf) round_to_halves(scale);
    drop_subnormals(scale);
  }
}

inline void reciprocals(const Lanes& v, Lanes& out) {
  const Lanes zero = {};
  out = v != zero ? 1.0f / v : zero;
}

struct Candidate {
  Lanes scale, zero_point, cost;
};

// Nearest codes at a scale and zero point.
struct Nearest {
  Lanes inverse, zero, high;
  Nearest(const Candidate& at, float levels) : zero(at.zero_point) {
    reciprocals(at.scale, inverse);
    const Lanes none = {};
    high = none + levels;
  }
  __attribute__((always_inline)) void operator()(const Lanes& value, Lanes& code) const {
    const Lanes low = {};
    code = value * inverse + zero;
    code = code < low ? low : code;
    code = code > high ? high : code;
    code = (code + kRounder) - kRounder;
  }
};

// What each weight's squared error counts: more, the larger it is within its block, where no data says better.
inline void count_errors(const LaneBlock& b, std::int64_t size, const Lanes& extreme) {
  if (b.importance != nullptr) {
    const Lanes none = {};
    for (std::int64_t k = 0; k < size; ++k) store(none + b.importance[k], b.counts + k * kLanes);
    return;
  }
  Lanes largest = extreme, share, total = {};
  drop_subnormals(largest);
  reciprocals(largest, share);
  for (std::int64_t k = 0; k < size; ++k) {
    Lanes value;
    load(b.x + k * kLanes, value);
    value *= share;
    value *= value;
    total += value;
    store(value, b.counts + k * kLanes);
  }
  Lanes factor;
  reciprocals(total, factor);
  factor *= static_cast<float>(size);
  for (std::int64_t k = 0; k < size; ++k) {
    Lanes square;
    load(b.counts + k * kLanes, square);
    store(square * factor + kMinCount, b.counts + k * kLanes);
  }
}

// What the search minimises, at the scale and zero point of the candidate.
inline void judge(const LaneBlock& b, std::int64_t size, float levels, Candidate& candidate) {
  const Nearest nearest(candidate, levels);
  Lanes total = {};
  for (std::int64_t k = 0; k < size; ++k) {
    Lanes value, count, code;
    load(b.x + k * kLanes, value);
    load(b.counts + k * kLanes, count);
    nearest(value, code);
    const Lanes difference = (code - candidate.zero_point) * candidate.scale - value;
    total += difference * difference * count;
  }
  candidate.cost = total;
}

// The scale of least squares for the codes that it gives: sum(h x q) / sum(h q q).
inline void refine_scale(const BlockScheme& scheme, const LaneBlock& b, float levels, Candidate& candidate) {
  const Nearest nearest(candidate, levels);
  const Lanes none = {};
  Lanes above = {}, below = {};
  for (std::int64_t k = 0; k < scheme.block_size; ++k) {
    Lanes value, count, code;
    load(b.x + k * kLanes, value);
    load(b.counts + k * kLanes, count);
    nearest(value, code);
    const Lanes q = code - candidate.zero_point;
    const Lanes weighted = q * count;
    above += value * weighted;
    below += q * weighted;
  }
  candidate.scale = below > none ? above / below : none;
  round_scales(scheme, candidate.scale);
}

inline void keep_better(const Candidate& candidate, Candidate& best) {
  const auto better = candidate.cost < best.cost;
  best.scale = better ? candidate.scale : best.scale;
  best.zero_point = better ? candidate.zero_point : best.zero_point;
  best.cost = better ? candidate.cost : best.cost;
}

// The plain candidate where the best one costs hardly less: without data the cost is but a guess.
inline void keep_worthy(const Candidate& plain, Candidate& best) {
  const auto worth = best.cost < kWorth * plain.cost;
  best.scale = worth ? best.scale : plain.scale;
  best.zero_point = worth ? best.zero_point : plain.zero_point;
  best.cost = worth ? best.cost : plain.cost;
}

// The codes, and their squared error.
inline void round_block(const LaneBlock& b, std::int64_t size, float levels, const Candidate& best, Lanes& error) {
  const Nearest nearest(best, levels);
  Lanes total = {};
  for (std::int64_t k = 0; k < size; ++k) {
    Lanes value, code;
    load(b.x + k * kLanes, value);
    nearest(value, code);
    const Lanes difference = (code - best.zero_point) * best.scale - value;
    total += difference * difference;
    store(code, b.codes + k * kLanes);
  }
  error = total;
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
  const Lanes extreme = high > -low ? high : low;
  count_errors(b, scheme.block_size, extreme);
  const auto propose = [&](float multiple, Candidate& candidate) {
    if (scheme.symmetric) {
      candidate.scale = extreme * multiple / -middle;
      round_scales(scheme, candidate.scale);
      candidate.zero_point = none + middle;
    } else {
      candidate.scale = high * multiple / levels - low * multiple / levels;
      round_scales(scheme, candidate.scale);
      Lanes zero;
      reciprocals(candidate.scale, zero);
      zero = -low * multiple * zero;
      zero = zero > levels ? none + levels : zero;
      candidate.zero_point = (zero + kRounder) - kRounder;
    }
    judge(b, scheme.block_size, levels, candidate);
  };
  Candidate best, trial;
  propose(1.0f, best);
  store(best.cost, b.baseline);
  const Candidate plain = best;
  if (scheme.search) {
    const auto propose_all = [&](const auto& multiples) {
      for (const float multiple : multiples) {
        propose(multiple, trial);
        keep_better(trial, best);
      }
    };
    propose_all(kMultiples);
    if (b.importance != nullptr || scheme.bits <= kFewBits) {
      propose_all(kFurtherMultiples);
      trial = best;
      refine_scale(scheme, b, levels, trial);
      judge(b, scheme.block_size, levels, trial);
      keep_better(trial, best);
    }
    if (b.importance == nullptr) keep_worthy(plain, best);
  }
  Lanes error;
  round_block(b, scheme.block_size, levels, best, error);
  store(best.scale, b.scale);
  store(best.zero_point, b.zero_point);
  store(best.cost, b.cost);
  store(error, b.error);
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
