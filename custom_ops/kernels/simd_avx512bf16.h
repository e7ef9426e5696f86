// Sixteen columns in one zmm, with dot products of bfloat16. Included only by files compiled for AVX-512 BF16.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/simd_avx512.h"

namespace onnxpress {
namespace {

// The bfloat16 of a whole number of at most 8 bits, exact.
constexpr std::uint16_t small_bfloat16(int value) {
  if (value == 0) return 0;
  int magnitude = value < 0 ? -value : value;
  int exponent = 127 + 7;
  for (; magnitude < 128; magnitude *= 2) --exponent;
  return static_cast<std::uint16_t>((value < 0 ? 0x8000 : 0) | exponent << 7 | (magnitude & 127));
}

// code - 2^(Bits - 1) for codes of up to 5 bits.
template <int Bits>
struct CenteredCodes {
  alignas(64) std::uint16_t values[32] = {};
  constexpr CenteredCodes() {
    for (int code = 0; code < 1 << Bits; ++code) values[code] = small_bfloat16(code - (1 << (Bits - 1)));
  }
};

struct Avx512Bf16 : Avx512 {
  static constexpr const char* kName = "avx512bf16";

  using Pairs = __m512i;  // two bfloat16 of each column
  struct Fours {
    Pairs even, odd;  // k of 0 and 2, k of 1 and 3
  };

  // code - 2^(Bits - 1) of each byte.
  template <int Bits>
  static Fours centered(U8 codes) {
    if constexpr (Bits <= 5) {
      // Only the low 5 bits of each 16 select, so the upper byte of them needs no mask.
      static constexpr CenteredCodes<Bits> kTable;
      const __m512i table = _mm512_load_si512(kTable.values);
      return {_mm512_permutexvar_epi16(codes, table), _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table)};
    } else {
      return {join(centered_float<Bits, 0>(codes), centered_float<Bits, 2>(codes)),
              join(centered_float<Bits, 1>(codes), centered_float<Bits, 3>(codes))};
    }
  }

  // 16 values rounded to bfloat16, each four of them in the order 0, 2, 1, 3 of `Fours`; returns what they became.
  static F32 round(const float* p, std::int64_t count, std::uint16_t* out) {
    const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load(p, count)));
    const __m256i order = _mm256_set_epi8(15, 14, 11, 10, 13, 12, 9, 8, 7, 6, 3, 2, 5, 4, 1, 0,  //
                                          15, 14, 11, 10, 13, 12, 9, 8, 7, 6, 3, 2, 5, 4, 1, 0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_shuffle_epi8(rounded, order));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
  }
  static float total(F32 v) { return _mm512_reduce_add_ps(v); }

  static Pairs load_pairs(const std::uint16_t* p) { return _mm512_load_si512(p); }
  static void store_pairs(std::uint16_t* p, Pairs v) { _mm512_store_si512(p, v); }
  static Pairs broadcast_pair(const std::uint16_t* p) {
    std::int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static F32 dot(F32 sum, Pairs a, Pairs b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

 private:
  // Byte J of each column's four as a float: 2^23 + code, less 2^23 and the middle. Of 8 bits or less, it is a
  // bfloat16 followed by 16 zeros.
  template <int Bits, int J>
  static __m512i centered_float(U8 codes) {
    constexpr float kBase = 8388608.0f;
    if constexpr (J > 0) codes = _mm512_srli_epi32(codes, 8 * J);
    constexpr int kAndOr = 0xea;  // (a & b) | c
    const __m512i based =
        _mm512_ternarylogic_epi32(codes, _mm512_set1_epi32(255), _mm512_castps_si512(_mm512_set1_ps(kBase)), kAndOr);
    const __m512 offset = _mm512_set1_ps(kBase + static_cast<float>(1 << (Bits - 1)));
    return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(based), offset));
  }
  static Pairs join(__m512i low, __m512i high) { return _mm512_or_si512(_mm512_srli_epi32(low, 16), high); }
};

}  // namespace
}  // namespace onnxpress
