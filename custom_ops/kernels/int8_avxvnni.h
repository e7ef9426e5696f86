// AVX2 with 4-way dot products of bytes; int8_scalar.h says what each function means.
#pragma once

#include <cstdint>

#include "kernels/int8_avx2.h"

namespace onnxpress {
namespace {

struct Int8AvxVnni : Int8Avx2 {
  static constexpr const char* kName = "avxvnni";
  static constexpr Int8Dots kInt8Dots = Int8Dots::kNative;
  static constexpr int kInt8Rows = 6;  // 12 registers of sums, 2 of weights and a broadcast make 15

  using Weights = U8;
  using Activations = __m256i;
  static Weights weights(const std::int8_t* line) { return Avx2::load(reinterpret_cast<const std::uint8_t*>(line)); }
  static Activations activations(const std::uint8_t* four) {
    std::int32_t x;
    std::memcpy(&x, four, sizeof x);
    return _mm256_set1_epi32(x);
  }
  static I32 dot(I32 sum, Activations x, Weights w) {
    return {_mm256_dpbusd_avx_epi32(sum.low, x, w.low), _mm256_dpbusd_avx_epi32(sum.high, x, w.high)};
  }
};

}  // namespace
}  // namespace onnxpress
