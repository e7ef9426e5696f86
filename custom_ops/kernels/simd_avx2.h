// Sixteen columns in two ymm. Included only by files compiled for AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/half.h"

namespace onnxpress {
namespace {

struct Avx2 {
  static constexpr const char* kName = "avx2";
  // 16 registers: 3 rows x 2 halves of 16-bit and of float sums are 12, 2 weights and a broadcast make 15.
  static constexpr int kRows = 3;
  static constexpr int kFloatRows = 6;  // without the 16-bit sums
  static constexpr int kPanelTiles = 1;
  template <int Rows>
  static constexpr int stream_tiles() {
    return Rows == 1 ? 2 : kPanelTiles;
  }

  struct U8 {
    __m256i low, high;
  };
  struct F32 {
    __m256 low, high;
  };
  using I32 = U8;

  static U8 load(const std::uint8_t* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static void store(std::uint8_t* p, U8 v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), v.low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), v.high);
  }
  static U8 bit_or(U8 a, U8 b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }

  // Bits `mask` of each byte after a shift right by Shift (left where negative).
  template <int Shift>
  static U8 field(U8 v, int mask) {
    if constexpr (Shift > 0) v = {_mm256_srli_epi16(v.low, Shift), _mm256_srli_epi16(v.high, Shift)};
    if constexpr (Shift < 0) v = {_mm256_slli_epi16(v.low, -Shift), _mm256_slli_epi16(v.high, -Shift)};
    const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(v.low, m), _mm256_and_si256(v.high, m)};
  }

  // Byte J of each column's four, as floats.
  template <int J>
  static F32 byte_to_float(U8 v) {
    if constexpr (J > 0) v = {_mm256_srli_epi32(v.low, 8 * J), _mm256_srli_epi32(v.high, 8 * J)};
    const __m256i m = _mm256_set1_epi32(255);
    return {_mm256_cvtepi32_ps(_mm256_and_si256(v.low, m)), _mm256_cvtepi32_ps(_mm256_and_si256(v.high, m))};
  }

  static F32 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F32 set1(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F32 load_half(const std::uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static F32 load_bfloat16(const std::uint16_t* p) {
    const auto half = [p](int at) {
      const __m256i upper = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + at)));
      return _mm256_castsi256_ps(_mm256_slli_epi32(upper, 16));
    };
    return {half(0), half(8)};
  }
  // 2^(code - 127), of which the lowest is subnormal.
  static F32 load_exponents(const std::uint8_t* p) {
    const auto half = [p](int at) {
      const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + at)));
      return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(code, 23), _mm256_set1_epi32(0x00400000)));
    };
    return {half(0), half(8)};
  }
  static F32 load_bytes(const std::uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)))};
  }
  static F32 load(const float* p, std::int64_t count) {
    if (count >= 16) return load(p);
    alignas(32) float part[16] = {};
    if (count > 0) std::memcpy(part, p, static_cast<std::size_t>(count) * sizeof(float));
    return load(part);
  }
  static void store(float* p, F32 v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static void store(float* p, F32 v, std::int64_t count) {
    if (count >= 16) return store(p, v);
    alignas(32) float part[16];
    store(part, v);
    if (count > 0) std::memcpy(p, part, static_cast<std::size_t>(count) * sizeof(float));
  }
  static void store_half(std::uint16_t* p, F32 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT));
  }
  static F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F32 fma(F32 a, F32 b, F32 c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static F32 fnma(F32 a, F32 b, F32 c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
  }
  static F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  // The second where one is NaN.
  static F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  // 2^n for an integer from -126 to 127; 0 for -127 and infinity for 128.
  static F32 pow2(F32 n) {
    const auto half = [](__m256 part) {
      const __m256 exponent = _mm256_add_ps(part, _mm256_set1_ps(kExponent));
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(exponent), 23));
    };
    return {half(n.low), half(n.high)};
  }
  // a * 2^n for an integer n from -126 on.
  static F32 scaled(F32 a, F32 n) { return mul(a, pow2(n)); }
  static F32 if_negative(F32 x, F32 then, F32 otherwise) {
    return {_mm256_blendv_ps(otherwise.low, then.low, x.low), _mm256_blendv_ps(otherwise.high, then.high, x.high)};
  }
  // Compared as integers, in whose order NaN is above infinity: a NaN is never lost.
  static float max_abs(const float* p, std::int64_t count) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i peak = _mm256_setzero_si256();
    for (std::int64_t k = 0; k < count; k += 16) {
      const F32 v = load(p + k, count - k);
      peak = _mm256_max_epi32(peak, _mm256_and_si256(_mm256_castps_si256(v.low), magnitude));
      peak = _mm256_max_epi32(peak, _mm256_and_si256(_mm256_castps_si256(v.high), magnitude));
    }
    alignas(32) std::uint32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), peak);
    std::uint32_t most = 0;
    for (std::uint32_t lane : lanes) most = lane > most ? lane : most;
    return bits_to_float(most);
  }
  // 16 values times `factor`, rounded to nearest even, as int8; returns their sum in each lane.
  static I32 quantize(const float* p, std::int64_t count, F32 factor, std::int8_t* out, I32 sum) {
    const F32 v = mul(load(p, count), factor);
    const __m256i low = _mm256_cvtps_epi32(v.low);
    const __m256i high = _mm256_cvtps_epi32(v.high);
    // Packing works within 128-bit halves; the permutation puts the four quarters back in order.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    _mm_store_si128(reinterpret_cast<__m128i*>(out),
                    _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    return {_mm256_add_epi32(sum.low, low), _mm256_add_epi32(sum.high, high)};
  }
  // Makes the compiler add what is in this sum now. GCC would rather put the products of many steps into memory, and
  // add them behind the last.
  static void add_now(__m256i& sum) { asm("" : "+x"(sum)); }

  static I32 zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static std::int32_t total(I32 v) {
    alignas(32) std::int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(v.low, v.high));
    std::int32_t sum = 0;
    for (std::int32_t lane : lanes) sum += lane;
    return sum;
  }

  // The sum over k of code * activation for 16 columns, minus zero_point * sum of activations.
  //
  // vpmaddubsw adds two products of an unsigned and a signed byte into 16 bits and saturates. With activations in
  // [-127, 127] one result is at most 2 * (2^Bits - 1) * 127, so kFold of them fit for Bits up to 7. Codes of 8
  // bits are made signed, and their sign is moved to the activation: 2 * 128 * 127 = 32512 fits once.
  template <int Bits>
  struct Dot {
    static constexpr int kFold = Bits <= 4 ? 8 : Bits == 5 ? 4 : Bits == 6 ? 2 : 1;
    static_assert(Bits == 8 || kFold * 2 * ((1 << Bits) - 1) * 127 <= 32767);

    I32 sum;
    I32 narrow;
    void start(std::int32_t zero_point, std::int32_t activations) {
      const std::int32_t offset = Bits == 8 ? zero_point - 128 : zero_point;
      const __m256i v = _mm256_set1_epi32(-offset * activations);
      sum = {v, v};
      narrow = zero_int();
    }
    template <int Index, int Run>
    void add(U8 codes, const std::int8_t* four) {
      std::int32_t x;
      std::memcpy(&x, four, sizeof x);
      const __m256i activation = _mm256_set1_epi32(x);
      const __m256i low = products(codes.low, activation);
      const __m256i high = products(codes.high, activation);
      constexpr bool kFirst = Index % kFold == 0;
      narrow.low = kFirst ? low : _mm256_add_epi16(narrow.low, low);
      narrow.high = kFirst ? high : _mm256_add_epi16(narrow.high, high);
      if constexpr (kFold > 1) {
        add_now(narrow.low);
        add_now(narrow.high);
      }
      if constexpr (Index % kFold == kFold - 1 || Index == Run - 1) fold();
    }
    F32 value() const { return {_mm256_cvtepi32_ps(sum.low), _mm256_cvtepi32_ps(sum.high)}; }

   private:
    static __m256i products(__m256i codes, __m256i activation) {
      if constexpr (Bits == 8) {
        const __m256i centred = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        return _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(activation, centred));
      }
      return _mm256_maddubs_epi16(codes, activation);
    }
    void fold() {
      const __m256i ones = _mm256_set1_epi16(1);
      sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(narrow.low, ones));
      sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(narrow.high, ones));
    }
  };
};

}  // namespace
}  // namespace onnxpress
