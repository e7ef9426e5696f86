// AVX2 with 4-way dot products of bytes. Included only by files compiled for AVX-VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/simd_avx2.h"

namespace onnxpress {
namespace {

struct AvxVnni : Avx2 {
  static constexpr const char* kName = "avxvnni";

  // As in Avx2; vpdpbusd adds four products into 32 bits, so nothing saturates.
  struct AnyDot {
    I32 sum;
    void start(std::int32_t zero_point, std::int32_t activations) {
      const __m256i v = _mm256_set1_epi32(-zero_point * activations);
      sum = {v, v};
    }
    template <int Index, int Run>
    void add(U8 codes, const std::int8_t* four) {
      std::int32_t x;
      std::memcpy(&x, four, sizeof x);
      const __m256i activation = _mm256_set1_epi32(x);
      sum.low = _mm256_dpbusd_avx_epi32(sum.low, codes.low, activation);
      sum.high = _mm256_dpbusd_avx_epi32(sum.high, codes.high, activation);
    }
    F32 value() const { return {_mm256_cvtepi32_ps(sum.low), _mm256_cvtepi32_ps(sum.high)}; }
  };
  template <int Bits>
  using Dot = AnyDot;
};

}  // namespace
}  // namespace onnxpress
