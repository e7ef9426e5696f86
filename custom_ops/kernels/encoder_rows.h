// How encoder_layer rounds rows of floats to codes.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/encoder_layer_kernels.h"
#include "kernels/fold.h"
#include "kernels/tile.h"

namespace onnxpress {
namespace {

constexpr float kNotANumber = __builtin_nanf("");
constexpr float kMostCode = 255.0f;
// Of scales: their inverses are finite.
constexpr float kLeast = 1e-30f;

inline bool is_finite(float v) { return v - v == 0; }

// The least and the greatest of zero and the values; false where one is not finite.
template <class S>
bool find_range(const float* x, std::int64_t count, float& low, float& high) {
  auto least = S::zero(), most = S::zero(), poison = S::zero();
  for (std::int64_t i = 0; i < count; i += kTile) {
    const auto v = S::load(x + i, count - i);  // zeros behind the last
    least = S::min(v, least);
    most = S::max(v, most);
    poison = S::fma(v, S::zero(), poison);
  }
  alignas(64) float lows[kTile], highs[kTile], bad[kTile];
  S::store(lows, least);
  S::store(highs, most);
  S::store(bad, poison);
  low = fold(lows, least_of);
  high = fold(highs, most_of);
  return fold(bad, sum_of) == 0;
}

// A row to uint8, for a weight, into row `row` of the scratch. One that is not finite gets the scale NaN.
template <class S>
void round_row(const float* x, const Int8Weight& weight, const EncoderScratch& scratch, std::int64_t row) {
  std::uint8_t* line = scratch.codes + row * scratch.code_bytes;
  const std::int64_t K = weight.K;
  float low = 0, high = 0;
  const bool finite = find_range<S>(x, K, low, high);
  // Divided one by one: their difference may be more than there is.
  const float range = high / kMostCode - low / kMostCode;
  const float scale = range > kLeast ? range : kLeast;
  const float inverse = 1.0f / scale, point = __builtin_nearbyintf(-low * inverse);
  scratch.scales[row] = finite ? scale : kNotANumber;
  scratch.zero_points[row] = finite ? static_cast<std::int32_t>(point) : 0;
  const auto factor = S::set1(inverse), zero_point = S::set1(point);
  for (std::int64_t k = 0; k < weight.padded_k; k += kTile) {
    S::store_bytes(line + k, S::fma(S::load(x + k, K - k), factor, zero_point));
  }
}

constexpr float kMost = 127.0f;

// `count` values to int8, the largest magnitude to 127, with zeros up to a multiple of 16. Returns their scale, or NaN
// and codes of 0 where a value is not finite.
template <class S>
float round_signed(const float* x, std::int64_t count, std::int8_t* codes) {
  const float peak = S::max_abs(x, count);
  const bool finite = is_finite(peak);
  const float most = peak > kLeast ? peak : kLeast;
  const auto factor = S::set1(kMost / most);
  for (std::int64_t i = 0; i < count; i += kTile) {
    if (finite) {
      S::quantize(x + i, count - i, factor, codes + i, S::zero_int());
    } else {
      memset(codes + i, 0, kTile);
    }
  }
  return finite ? most / kMost : kNotANumber;
}

}  // namespace
}  // namespace onnxpress
