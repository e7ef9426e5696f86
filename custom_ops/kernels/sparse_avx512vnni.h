// What block_sparse_matmul needs beyond int8_avx512vnni.h; sparse_scalar.h says what each function means.
#pragma once

#include <cstdint>

#include "kernels/int8_avx512vnni.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

struct SparseAvx512Vnni : Int8Avx512Vnni {
  static constexpr std::uint8_t kFlip = 0;
  static constexpr std::int64_t kMaxTilesAtOnce = 4;
  static constexpr bool kHas8RowTiles = true;
  static constexpr std::int64_t kMaxFewRowsInt8 = 2, kMaxFewRowsFloat = 6;
  static constexpr int kSums = 8;

  using Codes = __m512i;
  static Codes codes(const std::uint8_t* line) { return _mm512_load_si512(line); }
  using FourWords = __m512i;
  static FourWords four_codes(const std::uint8_t* words) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(words)));
  }
  using Word = __m512i;
  template <int Index>
  static Word code_word(FourWords words) {
    return _mm512_shuffle_epi32(words, static_cast<_MM_PERM_ENUM>(Index * 0x55));
  }
  template <int Index>
  static F32 float_word(const std::uint8_t* words) {
    return set1(reinterpret_cast<const float*>(words)[Index]);
  }
  static I32 dot_rows(I32 sum, Codes x, Word w) { return _mm512_dpbusd_epi32(sum, x, w); }
  static I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
  using Int8Avx512Vnni::add;
  static I32 load_ints(const std::uint8_t* line) { return _mm512_load_si512(line); }
  static F32 load_floats(const std::uint8_t* line) { return _mm512_load_ps(line); }
  static void store(std::uint8_t* line, I32 a) { _mm512_store_si512(line, a); }
  static void store(std::uint8_t* line, F32 a) { _mm512_store_ps(line, a); }
  using Int8Avx512Vnni::store;

  template <int Count>
  static void gather(const std::uint8_t* const (&from)[4], std::uint8_t* to) {
    unroll<Count>(ONNXPRESS_EACH(t) {
      const auto k = [&](int j) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[j] + 16 * t.value)); };
      __m512i v = _mm512_castsi128_si512(k(0));
      v = _mm512_inserti32x4(v, k(1), 1);
      v = _mm512_inserti32x4(v, k(2), 2);
      v = _mm512_inserti32x4(v, k(3), 3);
      _mm512_store_si512(to + 64 * t.value, transpose_fours(_mm512_permutexvar_epi32(transposed_words(), v)));
    });
  }
  static void transpose_bytes(const std::uint8_t* line, std::uint8_t* to, std::int64_t to_step) {
    const __m512i v = _mm512_permutexvar_epi32(transposed_words(), transpose_fours(_mm512_load_si512(line)));
    unroll<4>(ONNXPRESS_EACH(j) {
      _mm_store_si128(reinterpret_cast<__m128i*>(to + j.value * to_step), _mm512_extracti32x4_epi32(v, j.value));
    });
  }

  // ---- Half lines, of 8 rows, two in a vector

  // Of two fours of words.
  static FourWords eight_codes(const std::uint8_t* words) {
    const __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
    return _mm512_shuffle_i64x2(both, both, 0x50);
  }
  static FourWords four_codes_below(const std::uint8_t* words) {
    return _mm512_maskz_broadcast_i32x4(0xff, _mm_load_si128(reinterpret_cast<const __m128i*>(words)));
  }
  static Codes two_halves(const std::uint8_t* below, const std::uint8_t* above) {
    const auto half = [](const std::uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(below)), half(above), 1);
  }
  static I32 set_below(std::int32_t v) { return _mm512_maskz_set1_epi32(0xff, v); }
  // Their sums below, zeros above.
  static I32 add_halves(I32 v) {
    return _mm512_zextsi256_si512(_mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)));
  }
  static void gather_half(const std::uint8_t* const (&from)[4], std::uint8_t* to) {
    const auto k = [&](int j) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from[j])); };
    const __m128i two01 = _mm_unpacklo_epi8(k(0), k(1)), two23 = _mm_unpacklo_epi8(k(2), k(3));
    _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi16(two01, two23));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + 16), _mm_unpackhi_epi16(two01, two23));
  }
  // As `transpose` to lines that follow each other, bytes transposed as `transpose_bytes` does where they are to be.
  static void transpose_half(const std::uint8_t* from, std::int64_t from_step, std::uint8_t* to,
                             bool transposes_bytes) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for_each_transposed(
        [=](std::int64_t i) { return _mm512_loadu_si512(from + i * from_step); },
        [=](std::int64_t i, I32 line) {
          const __m256i half = _mm512_castsi512_si256(line);
          const __m256i transposed = _mm256_permutevar8x32_epi32(_mm512_castsi512_si256(transpose_fours(line)), order);
          _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32 * i), transposes_bytes ? transposed : half);
        });
  }

  static void transpose(const std::uint8_t* from, std::int64_t from_step, std::uint8_t* to, std::int64_t to_step) {
    for_each_transposed([=](std::int64_t i) { return _mm512_loadu_si512(from + i * from_step); },
                        [=](std::int64_t i, I32 line) { _mm512_store_si512(to + i * to_step, line); });
  }
  template <class Load, class Use>
  __attribute__((always_inline)) static void for_each_transposed(const Load& load, const Use& use) {
    __m512i a[16], b[16];
    unroll<16>(ONNXPRESS_EACH(i) { a[i.value] = load(i.value); });
    unroll<8>(ONNXPRESS_EACH(i) {
      b[2 * i.value] = _mm512_unpacklo_epi32(a[2 * i.value], a[2 * i.value + 1]);
      b[2 * i.value + 1] = _mm512_unpackhi_epi32(a[2 * i.value], a[2 * i.value + 1]);
    });
    // a[4 q + c]: of lines 4 q to 4 q + 3, words 4 l + c in each quarter l.
    unroll<4>(ONNXPRESS_EACH(q) {
      constexpr int k = 4 * q.value;
      a[k] = _mm512_unpacklo_epi64(b[k], b[k + 2]);
      a[k + 1] = _mm512_unpackhi_epi64(b[k], b[k + 2]);
      a[k + 2] = _mm512_unpacklo_epi64(b[k + 1], b[k + 3]);
      a[k + 3] = _mm512_unpackhi_epi64(b[k + 1], b[k + 3]);
    });
    unroll<4>(ONNXPRESS_EACH(c) {
      constexpr int k = c.value;
      const __m512i even01 = _mm512_shuffle_i32x4(a[k], a[4 + k], 0x88);
      const __m512i odd01 = _mm512_shuffle_i32x4(a[k], a[4 + k], 0xdd);
      const __m512i even23 = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0x88);
      const __m512i odd23 = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0xdd);
      use(k, _mm512_shuffle_i32x4(even01, even23, 0x88));
      use(4 + k, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
      use(8 + k, _mm512_shuffle_i32x4(even01, even23, 0xdd));
      use(12 + k, _mm512_shuffle_i32x4(odd01, odd23, 0xdd));
    });
  }
  static F32 as_floats(I32 words) { return _mm512_castsi512_ps(words); }
  static I32 as_ints(F32 v) { return _mm512_castps_si512(v); }

  static I32 pack_codes(const F32 (&y)[4], const CodeFormat& format) {
    F32 quotients[4];
    divide(y, format, quotients);
    // Beyond its range the conversion gives the least integer: right for what is below, and for NaN, too.
    const auto ints = [&](int i) { return _mm512_cvtps_epi32(_mm512_min_ps(set1(32767.0f), quotients[i])); };
    const __m512i zero_point = _mm512_set1_epi16(static_cast<short>(format.zero_point));
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(ints(0), ints(1)), zero_point);
    const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(ints(2), ints(3)), zero_point);
    // Packing works within 128-bit quarters: there, byte i of the four numbers follow each other four by four.
    return transpose_fours(_mm512_packus_epi16(first, second));
  }
  static void store_words(std::uint8_t* p, I32 words, std::int64_t count) {
    if (count >= 64) {
      _mm512_storeu_si512(p, words);
    } else {
      _mm512_mask_storeu_epi8(p, (__mmask64{1} << count) - 1, words);
    }
  }

  static void round_line(const float* p, const CodeFormat& format, std::uint8_t* line) {
    const F32 values[4] = {load(p), load(p + 16), load(p + 32), load(p + 48)};
    F32 quotients[4];
    divide(values, format, quotients);
    const auto ints = [&](int i) { return _mm512_cvtps_epi32(quotients[i]); };
    const __m512i codes =
        _mm512_packs_epi16(_mm512_packs_epi32(ints(0), ints(1)), _mm512_packs_epi32(ints(2), ints(3)));
    // Packing works within 128-bit quarters, from each of which four words follow each other.
    const __m512i in_order = _mm512_permutexvar_epi32(transposed_words(), codes);
    _mm512_store_si512(line, _mm512_xor_si512(in_order, _mm512_set1_epi8(-128)));
  }

  static Weights expand_codes(const std::uint8_t* words, unsigned mask) {
    return _mm512_maskz_expand_epi32(static_cast<__mmask16>(mask), _mm512_loadu_si512(words));
  }
  static F32 expand_floats(const std::uint8_t* words, unsigned mask) {
    return _mm512_castsi512_ps(expand_codes(words, mask));
  }

 private:
  // Of 4 x 4 bytes in each quarter.
  static __m512i transpose_fours(__m512i v) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(order));
  }
  static __m512i transposed_words() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

  // By the scale: where a product with its inverse might be rounded to another integer, exactly.
  static void divide(const F32 (&values)[4], const CodeFormat& format, F32 (&quotients)[4]) {
    F32 distance = _mm512_setzero_ps();
    unroll<4>(ONNXPRESS_EACH(i) {
      constexpr int kNearest = 0, kGreaterMagnitude = 0xb;
      quotients[i.value] = mul(values[i.value], set1(format.inverse));
      distance = _mm512_range_ps(distance, _mm512_reduce_ps(quotients[i.value], kNearest), kGreaterMagnitude);
    });
    if (_mm512_cmp_ps_mask(distance, set1(kSurelyRounded), _CMP_NLT_UQ) != 0) {
      unroll<4>(ONNXPRESS_EACH(i) { quotients[i.value] = div(values[i.value], set1(format.scale)); });
    }
  }
};

}  // namespace
}  // namespace onnxpress
