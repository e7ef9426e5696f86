// How encoder_layer rounds rows of floats to codes.
#pragma once

#include <cstdint>

#include "kernels/encoder_layer_kernels.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {
namespace {

constexpr float kNotANumber = __builtin_nanf("");

inline bool is_finite(float v) { return v - v == 0; }

// A row to uint8, for a weight, into row `row` of the scratch. One that is not finite gets the scale NaN.
template <class S>
void round_row(const float* x, const Int8Weight& weight, const EncoderScratch& scratch, std::int64_t row) {
  std::uint8_t* line = scratch.codes + row * scratch.code_bytes;
  const std::int64_t K = weight.K;
  if (!is_finite(S::max_abs(x, K))) {
    scratch.scales[row] = kNotANumber;
    scratch.zero_points[row] = 0;
    memset(line, 0, static_cast<std::size_t>(weight.padded_k));
    return;
  }
  float low = 0, high = 0;
  S::extend(x, K, low, high);
  // Divided one by one: their difference may be more than there is.
  const float scale = high != low ? high / 255.0f - low / 255.0f : 1.0f;
  float zero_point = -low / scale;
  zero_point = zero_point < 0.0f ? 0.0f : zero_point > 255.0f ? 255.0f : zero_point;
  scratch.scales[row] = scale;
  scratch.zero_points[row] = static_cast<std::int32_t>(__builtin_nearbyintf(zero_point));
  const CodeFormat format{scale, 1.0f / scale, scratch.zero_points[row], 0};
  for (std::int64_t k = 0; k < weight.padded_k; k += kLine) load_line<S>(x + k, K - k, format, line + k);
}

// The scale of int8 codes whose largest is 127, of finite values; kLeast keeps its inverse finite.
constexpr float kLeast = 1e-30f, kMost = 127.0f;

// `count` values to int8, with zeros up to a multiple of 16. `sum` becomes that of the codes. Returns their scale, or
// NaN and codes of 0 where a value is not finite.
template <class S>
float round_signed(const float* x, std::int64_t count, std::int8_t* codes, std::int32_t& sum) {
  const float peak = S::max_abs(x, count);
  const bool finite = is_finite(peak);
  const float most = peak > kLeast ? peak : kLeast;
  const auto factor = S::set1(kMost / most);
  typename S::I32 sums = S::zero_int();
  for (std::int64_t i = 0; i < count; i += kTile) {
    if (finite) {
      sums = S::quantize(x + i, count - i, factor, codes + i, sums);
    } else {
      memset(codes + i, 0, kTile);
    }
  }
  sum = S::total(sums);
  return finite ? most / kMost : kNotANumber;
}

}  // namespace
}  // namespace onnxpress
