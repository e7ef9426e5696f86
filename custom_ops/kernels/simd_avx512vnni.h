// AVX-512 with 4-way dot products of bytes. Included only by files compiled for AVX-512 VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/simd_avx512.h"

namespace onnxpress {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr const char* kName = "avx512vnni";
  // 32 registers: 6 rows x 2 tiles of int32 and of float sums are 24, 2 weights and a broadcast make 27.
  static constexpr int kRows = 6;

  // As in Avx512; vpdpbusd adds four products into 32 bits, so nothing saturates.
  struct AnyDot {
    I32 sum;
    void start(std::int32_t zero_point, std::int32_t activations) {
      sum = _mm512_set1_epi32(-zero_point * activations);
    }
    template <int Index, int Run>
    void add(U8 codes, const std::int8_t* four) {
      std::int32_t x;
      std::memcpy(&x, four, sizeof x);
      sum = _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x));
    }
    F32 value() const { return _mm512_cvtepi32_ps(sum); }
  };
  template <int Bits>
  using Dot = AnyDot;
};

}  // namespace
}  // namespace onnxpress
