// Small floating-point codes on AVX2. Sign and magnitude go to where float16 has them, whose exponent is as wide or
// wider: the conversion to float32 is exact, subnormal numbers included, and leaves a power of two to be multiplied.
#pragma once

#include "kernels/matmul_nbits_codes.h"
#include "kernels/minifloat.h"
#include "kernels/simd_avx2.h"

namespace onnxpress {
namespace {

template <CodeKind Kind>
struct Avx2MiniFloats {
  static constexpr MiniFloat kFormat = minifloat(Kind);
  static constexpr int kBits = kFormat.bits();
  static constexpr bool kHasZeroPoints = false;

  template <int G>
  __attribute__((always_inline)) static void floats(const std::uint8_t* span, Avx2::F32 (&v)[4]) {
    const Avx2::U8 codes = load_group<Avx2, kBits, G>(span);
    __m256 low[4], high[4];
    eight_columns(codes.low, low);
    eight_columns(codes.high, high);
    for (int j = 0; j < 4; ++j) v[j] = {low[j], high[j]};
  }

 private:
  // The codes of 8 columns by 4 k.
  __attribute__((always_inline)) static void eight_columns(__m256i codes, __m256 (&v)[4]) {
    // Columns 0, 1, 4, 5 and then 2, 3, 6, 7, which the shuffles below put in order.
    codes = _mm256_permute4x64_epi64(codes, 0xd8);
    halves_to_floats(to_halves(_mm256_slli_epi16(codes, 16 - kBits)), v[0], v[2]);
    halves_to_floats(to_halves(_mm256_slli_epi16(codes, 8 - kBits)), v[1], v[3]);
  }

  // From the upper bits of each 16 to float16, without its power of two.
  __attribute__((always_inline)) static __m256i to_halves(__m256i codes) {
    constexpr int kMagnitude = ((1 << (kBits - 1)) - 1) << (10 - kFormat.mantissa);
    const __m256i places = _mm256_set1_epi16(static_cast<short>(0x8000 | kMagnitude));
    return _mm256_and_si256(_mm256_srai_epi16(codes, 5 - kFormat.exponent), places);
  }

  // The first and the second of each column's two.
  __attribute__((always_inline)) static void halves_to_floats(__m256i halves, __m256& first, __m256& second) {
    const __m256 a = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    const __m256 b = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    const __m256 power = _mm256_set1_ps(static_cast<float>(1 << (15 - kFormat.bias)));
    first = _mm256_mul_ps(_mm256_shuffle_ps(a, b, 0x88), power);
    second = _mm256_mul_ps(_mm256_shuffle_ps(a, b, 0xdd), power);
  }
};

// By two tables of eight, of which the highest bit of the code selects one.
template <>
struct Avx2MiniFloats<CodeKind::kNF4> {
  static constexpr bool kHasZeroPoints = false;

  template <int G>
  __attribute__((always_inline)) static void floats(const std::uint8_t* span, Avx2::F32 (&v)[4]) {
    const Avx2::U8 line = Avx2::load(span + kLine * (G % 4));
    unroll<4>(ONNXPRESS_EACH(j) {
      constexpr int kShift = 8 * decltype(j)::value + G / 4 * 4;
      v[j.value] = {look_up(_mm256_srli_epi32(line.low, kShift)), look_up(_mm256_srli_epi32(line.high, kShift))};
    });
  }

 private:
  struct Table {
    alignas(32) std::uint32_t bits[16] = {};
    constexpr Table() {
      for (int code = 0; code < 16; ++code) bits[code] = minifloat_bits(CodeKind::kNF4, code);
    }
  };

  // Of the low four bits of each column.
  __attribute__((always_inline)) static __m256 look_up(__m256i codes) {
    static constexpr Table kTable;
    const auto* table = reinterpret_cast<const float*>(kTable.bits);
    const __m256 negative = _mm256_permutevar8x32_ps(_mm256_load_ps(table), codes);
    const __m256 positive = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), codes);
    return _mm256_blendv_ps(negative, positive, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
  }
};

}  // namespace
}  // namespace onnxpress
