// What block_sparse_matmul needs beyond int8_avx512vnni.h; sparse_scalar.h says what each function means.
#pragma once

#include <cstdint>

#include "kernels/int8_avx512vnni.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

struct SparseAvx512Vnni : Int8Avx512Vnni {
  static constexpr std::int64_t kTogether = 2;
  static constexpr std::int64_t kFew = 7;

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

  static void gather(const std::uint8_t* const (&lines)[4], const std::uint32_t* ks, std::uint8_t* line) {
    __m512i all = _mm512_setzero_si512();
    unroll<4>(ONNXPRESS_EACH(j) {
      // From byte k & 3 of each word to its byte j, within each 128 bits.
      const __m512i places = _mm512_add_epi32(_mm512_broadcast_i32x4(_mm_setr_epi32(0, 4, 8, 12)),
                                              _mm512_set1_epi32(static_cast<int>(ks[j.value] & 3)));
      const __m512i moved = _mm512_maskz_shuffle_epi8(
          0x1111111111111111ull << j.value, _mm512_load_si512(lines[j.value]), _mm512_slli_epi32(places, 8 * j.value));
      all = _mm512_or_si512(all, moved);
    });
    _mm512_store_si512(line, all);
  }

  static void transpose(const std::uint8_t* from, std::int64_t from_step, std::uint8_t* to, std::int64_t to_step) {
    __m512i a[16], b[16];
    unroll<16>(ONNXPRESS_EACH(i) { a[i.value] = _mm512_load_si512(from + i.value * from_step); });
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
      const __m512i even01 = _mm512_shuffle_i32x4(a[k], a[4 + k], 0x88),
                    odd01 = _mm512_shuffle_i32x4(a[k], a[4 + k], 0xdd);
      const __m512i even23 = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0x88);
      const __m512i odd23 = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0xdd);
      _mm512_store_si512(to + k * to_step, _mm512_shuffle_i32x4(even01, even23, 0x88));
      _mm512_store_si512(to + (4 + k) * to_step, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
      _mm512_store_si512(to + (8 + k) * to_step, _mm512_shuffle_i32x4(even01, even23, 0xdd));
      _mm512_store_si512(to + (12 + k) * to_step, _mm512_shuffle_i32x4(odd01, odd23, 0xdd));
    });
  }

  static Weights expand_codes(const std::uint8_t* words, unsigned mask) {
    return _mm512_maskz_expandloadu_epi32(static_cast<__mmask16>(mask), words);
  }
  static F32 expand_floats(const std::uint8_t* words, unsigned mask) {
    return _mm512_castsi512_ps(expand_codes(words, mask));
  }
};

}  // namespace
}  // namespace onnxpress
