// Sixteen columns in one zmm. Included only by files compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/half.h"

namespace onnxpress {
namespace {

struct Avx512 {
  static constexpr const char* kName = "avx512";
  // 32 registers: 4 rows x 2 tiles of sums in 16 bits, in 32 bits and of floats are 24, 2 weights and a broadcast make
  // 27.
  static constexpr int kRows = 4;
  static constexpr int kFloatRows = 6;  // 12 of sums
  static constexpr int kPanelTiles = 2;
  // Tiles of the streaming kernel: as many sums as hide the latency of a product, within the registers.
  template <int Rows>
  static constexpr int stream_tiles() {
    return Rows <= 2 ? 4 : kPanelTiles;
  }

  using U8 = __m512i;
  using I32 = __m512i;
  using F32 = __m512;

  static U8 load(const std::uint8_t* p) { return _mm512_load_si512(p); }
  static void store(std::uint8_t* p, U8 v) { _mm512_store_si512(p, v); }
  static U8 bit_or(U8 a, U8 b) { return _mm512_or_si512(a, b); }

  // Bits `mask` of each byte after a shift right by Shift (left where negative).
  template <int Shift>
  static U8 field(U8 v, int mask) {
    if constexpr (Shift > 0) v = _mm512_srli_epi16(v, Shift);
    if constexpr (Shift < 0) v = _mm512_slli_epi16(v, -Shift);
    return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(mask)));
  }

  // Byte J of each column's four, as floats.
  template <int J>
  static F32 byte_to_float(U8 v) {
    if constexpr (J > 0) v = _mm512_srli_epi32(v, 8 * J);
    if constexpr (J < 3) v = _mm512_and_si512(v, _mm512_set1_epi32(255));
    return _mm512_cvtepi32_ps(v);
  }

  static F32 zero() { return _mm512_setzero_ps(); }
  static F32 set1(float v) { return _mm512_set1_ps(v); }
  static F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static F32 load_half(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F32 load_bfloat16(const std::uint16_t* p) {
    const __m512i upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(upper, 16));
  }
  // 2^(code - 127), of which the lowest is subnormal.
  static F32 load_exponents(const std::uint8_t* p) {
    const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(code, 23), _mm512_set1_epi32(0x00400000)));
  }
  static F32 load_bytes(const std::uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static F32 load(const float* p, std::int64_t count) {
    return count >= 16 ? load(p) : _mm512_maskz_loadu_ps(mask_of(count), p);
  }
  static void store(float* p, F32 v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, F32 v, std::int64_t count) {
    if (count >= 16) {
      store(p, v);
    } else {
      _mm512_mask_storeu_ps(p, mask_of(count), v);
    }
  }
  static void store_half(std::uint16_t* p, F32 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  static F32 fnma(F32 a, F32 b, F32 c) { return _mm512_fnmadd_ps(a, b, c); }
  static F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  // The second where one is NaN.
  static F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
  static F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  // 2^n for an integer from -126 to 127; 0 for -127 and infinity for 128.
  static F32 pow2(F32 n) {
    const __m512i exponent = _mm512_castps_si512(_mm512_add_ps(n, _mm512_set1_ps(kExponent)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  // a * 2^n for an integer n from -126 on.
  static F32 scaled(F32 a, F32 n) { return _mm512_scalef_ps(a, n); }
  static F32 if_negative(F32 x, F32 then, F32 otherwise) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), otherwise, then);
  }
  // Compared as integers, in whose order NaN is above infinity: a NaN is never lost.
  static float max_abs(const float* p, std::int64_t count) {
    __m512i peak = _mm512_setzero_si512();
    for (std::int64_t k = 0; k < count; k += 16) {
      peak = _mm512_max_epi32(peak, _mm512_castps_si512(_mm512_abs_ps(load(p + k, count - k))));
    }
    return bits_to_float(static_cast<std::uint32_t>(_mm512_reduce_max_epi32(peak)));
  }
  // 16 values times `factor`, rounded to nearest even, as int8; returns their sum in each lane.
  static I32 quantize(const float* p, std::int64_t count, F32 factor, std::int8_t* out, I32 sum) {
    const __m512i v = _mm512_cvtps_epi32(mul(load(p, count), factor));
    _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v));
    return _mm512_add_epi32(sum, v);
  }
  // Makes the compiler add what is in this sum now, as in simd_avx2.h.
  static void add_now(__m512i& sum) { asm("" : "+v"(sum)); }
  // The even bytes of each 16 bits, signed.
  static __m512i even_of(__m512i v) { return _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8); }

  static I32 zero_int() { return _mm512_setzero_si512(); }
  static std::int32_t total(I32 v) { return _mm512_reduce_add_epi32(v); }

  // The sum over k of code * activation for 16 columns, minus zero_point * sum of activations.
  //
  // vpmaddubsw adds two products of an unsigned and a signed byte into 16 bits and saturates: see simd_avx2.h.
  template <int Bits>
  struct Dot {
    static constexpr int kFold = Bits <= 4 ? 8 : Bits == 5 ? 4 : Bits == 6 ? 2 : 1;
    static_assert(Bits == 8 || kFold * 2 * ((1 << Bits) - 1) * 127 <= 32767);

    I32 sum;
    I32 narrow;
    void start(std::int32_t zero_point, std::int32_t activations) {
      const std::int32_t offset = Bits == 8 ? zero_point - 128 : zero_point;
      sum = _mm512_set1_epi32(-offset * activations);
      narrow = zero_int();
    }
    template <int Index, int Run>
    void add(U8 codes, const std::int8_t* four) {
      std::int32_t x;
      std::memcpy(&x, four, sizeof x);
      const __m512i added = products(codes, _mm512_set1_epi32(x));
      narrow = Index % kFold == 0 ? added : _mm512_add_epi16(narrow, added);
      if constexpr (kFold > 1) add_now(narrow);
      if constexpr (Index % kFold == kFold - 1 || Index == Run - 1) {
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(narrow, _mm512_set1_epi16(1)));
      }
    }
    F32 value() const { return _mm512_cvtepi32_ps(sum); }

   private:
    static __m512i products(U8 codes, __m512i activation) {
      if constexpr (Bits == 8) {  // with the sign of the code at the activation
        const __m512i centred = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
        const __mmask64 negative = _mm512_movepi8_mask(centred);
        activation = _mm512_mask_sub_epi8(activation, negative, _mm512_setzero_si512(), activation);
        return _mm512_maddubs_epi16(_mm512_abs_epi8(centred), activation);
      }
      return _mm512_maddubs_epi16(codes, activation);
    }
  };

 private:
  static __mmask16 mask_of(std::int64_t count) { return static_cast<__mmask16>(count <= 0 ? 0u : (1u << count) - 1u); }
};

}  // namespace
}  // namespace onnxpress
