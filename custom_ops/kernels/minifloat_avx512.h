// Small floating-point codes on AVX-512, by tables in registers: of 4 bits to float32, of more to bfloat16, which is
// the upper half of a float32.
#pragma once

#include "kernels/matmul_nbits_codes.h"
#include "kernels/minifloat.h"
#include "kernels/simd_avx512.h"

namespace onnxpress {
namespace {

// The bfloat16 of all codes, of 8 bits without those of a negative sign.
template <CodeKind Kind>
struct BFloat16Table {
  static constexpr int kBits = minifloat(Kind).bits();
  static constexpr int kCodes = kBits == 8 ? 128 : 1 << kBits;
  static constexpr int kCount = kCodes < 32 ? 32 : kCodes;
  alignas(64) std::uint16_t values[kCount] = {};
  constexpr BFloat16Table() {
    for (int i = 0; i < kCount; ++i) values[i] = minifloat_bfloat16(Kind, i % kCodes);
  }
};

struct FourPairs {
  __m512i even, odd;  // k of 0 and 2, k of 1 and 3
};

template <CodeKind Kind>
struct MiniFloatPairs {
  static constexpr int kBits = minifloat(Kind).bits();
  static constexpr bool kHasZeroPoints = false;
  static_assert(kBits == 4 || kBits == 6 || kBits == 8, "look_up knows tables of these sizes");

  template <int G>
  __attribute__((always_inline)) static FourPairs pairs(const std::uint8_t* span) {
    if constexpr (kBits == 4) {
      // Nothing of what stands above the four bits matters: the table is there twice.
      const __m512i line = _mm512_load_si512(span + kLine * (G % 4));
      constexpr int kShift = G / 4 * 4;
      return {look_up(_mm512_srli_epi16(line, kShift)), look_up(_mm512_srli_epi16(line, kShift + 8))};
    } else {
      const __m512i codes = load_group<Avx512, kBits, G>(span);
      return {look_up(codes), look_up(_mm512_srli_epi16(codes, 8))};
    }
  }

 private:
  // Of the low bits of each 16.
  __attribute__((always_inline)) static __m512i look_up(__m512i codes) {
    static constexpr BFloat16Table<Kind> kTable;
    const auto part = [](int index) { return _mm512_load_si512(kTable.values + 32 * index); };
    if constexpr (kBits == 4) return _mm512_permutexvar_epi16(codes, part(0));
    if constexpr (kBits == 6) return _mm512_permutex2var_epi16(part(0), codes, part(1));
    const __m512i low = _mm512_permutex2var_epi16(part(0), codes, part(1));
    const __m512i high = _mm512_permutex2var_epi16(part(2), codes, part(3));
    const __m512i magnitude = _mm512_mask_mov_epi16(low, _mm512_test_epi16_mask(codes, _mm512_set1_epi16(64)), high);
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    return _mm512_ternarylogic_epi32(magnitude, _mm512_slli_epi16(codes, 8), _mm512_set1_epi16(-32768), kOrAnd);
  }
};

template <CodeKind Kind, class Pairs = MiniFloatPairs<Kind>>
struct Avx512MiniFloats {
  static constexpr bool kHasZeroPoints = false;

  template <int G>
  __attribute__((always_inline)) static void floats(const std::uint8_t* span, __m512 (&v)[4]) {
    if constexpr (minifloat(Kind).bits() == 4) {
      const __m512i line = _mm512_load_si512(span + kLine * (G % 4));
      unroll<4>(ONNXPRESS_EACH(j) {
        constexpr int kShift = 8 * decltype(j)::value + G / 4 * 4;
        v[j.value] = look_up(_mm512_srli_epi32(line, kShift));
      });
    } else {
      const FourPairs pairs = Pairs::template pairs<G>(span);
      split(pairs.even, v[0], v[2]);
      split(pairs.odd, v[1], v[3]);
    }
  }

 private:
  struct Table {
    alignas(64) std::uint32_t bits[16] = {};
    constexpr Table() {
      for (int code = 0; code < 16; ++code) bits[code] = minifloat_bits(Kind, code);
    }
  };

  // Of the low four bits of each column.
  __attribute__((always_inline)) static __m512 look_up(__m512i codes) {
    static constexpr Table kTable;
    return _mm512_permutexvar_ps(codes, _mm512_castsi512_ps(_mm512_load_si512(kTable.bits)));
  }

  __attribute__((always_inline)) static void split(__m512i pairs, __m512& first, __m512& second) {
    first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

}  // namespace
}  // namespace onnxpress
