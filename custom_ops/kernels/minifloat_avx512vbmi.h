// Small floating-point codes of 8 bits by tables of bytes in registers: both halves of a bfloat16 for 64 codes at once,
// where tables of 16 bits take three look-ups for 32. Included only by files compiled for AVX-512 VBMI.
#pragma once

#include "kernels/minifloat_avx512.h"

namespace onnxpress {
namespace {

// The bytes of the bfloat16 of all codes without a sign.
template <CodeKind Kind>
struct BFloat16Bytes {
  alignas(64) std::uint8_t low[128] = {}, high[128] = {};
  constexpr BFloat16Bytes() {
    for (int code = 0; code < 128; ++code) {
      low[code] = static_cast<std::uint8_t>(minifloat_bfloat16(Kind, code) & 255);
      high[code] = static_cast<std::uint8_t>(minifloat_bfloat16(Kind, code) >> 8);
    }
  }
};

template <CodeKind Kind>
struct VbmiPairs : MiniFloatPairs<Kind> {
  template <int G>
  __attribute__((always_inline)) static FourPairs pairs(const std::uint8_t* span) {
    if constexpr (MiniFloatPairs<Kind>::kBits != 8) {
      return MiniFloatPairs<Kind>::template pairs<G>(span);
    } else {
      static constexpr BFloat16Bytes<Kind> kBytes;
      const __m512i codes = load_group<Avx512, 8, G>(span);
      constexpr int kOrAnd = 0xf8, kAndOr = 0xea;  // a | (b & c), (a & b) | c
      const __m512i low = look_up(kBytes.low, codes);
      const __m512i sign = _mm512_set1_epi8(-128), upper = _mm512_set1_epi16(-256);
      const __m512i high = _mm512_ternarylogic_epi32(look_up(kBytes.high, codes), codes, sign, kOrAnd);
      return {_mm512_mask_mov_epi8(low, kOdd, _mm512_slli_epi16(high, 8)),
              _mm512_ternarylogic_epi32(high, upper, _mm512_srli_epi16(low, 8), kAndOr)};
    }
  }

 private:
  static constexpr __mmask64 kOdd = 0xaaaaaaaaaaaaaaaa;

  // Of the low seven bits of each byte.
  __attribute__((always_inline)) static __m512i look_up(const std::uint8_t* table, __m512i codes) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), codes, _mm512_load_si512(table + 64));
  }
};

}  // namespace
}  // namespace onnxpress
