// What matmul_int8 needs beyond simd_avx2.h; int8_scalar.h says what each function means.
#pragma once

#include <cstdint>

#include "kernels/matmul_int8_kernels.h"
#include "kernels/simd_avx2.h"

namespace onnxpress {
namespace {

// vpmaddubsw would saturate: bytes are widened to 16 bits, the even and the odd ones apart, and vpmaddwd is exact.
struct Int8Avx2 : Avx2 {
  static constexpr Int8Dots kInt8Dots = Int8Dots::kWidened;
  // 16 registers: 4 rows x 2 halves of sums, 4 of weights, 2 of activations and a product make 15.
  static constexpr int kInt8Rows = 4;

  template <int Rows>
  static constexpr int int8_tiles() {
    return Rows == 1 ? 2 : 1;
  }

  using Avx2::load;
  using Avx2::set1;
  static I32 set1(std::int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
  static I32 load(const std::int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
  }
  using Avx2::mul;
  using Avx2::sub;
  static I32 sub(I32 a, I32 b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
  static I32 mul(I32 a, I32 b) { return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)}; }
  static F32 to_float(I32 v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }

  struct Weights {
    __m256i low_even, low_odd, high_even, high_odd;
  };
  struct Activations {
    __m256i even, odd;
  };
  static Weights weights(const std::int8_t* line) {
    const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(line));
    const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(line + 32));
    return {_mm256_srai_epi16(_mm256_slli_epi16(low, 8), 8), _mm256_srai_epi16(low, 8),
            _mm256_srai_epi16(_mm256_slli_epi16(high, 8), 8), _mm256_srai_epi16(high, 8)};
  }
  static Activations activations(const std::uint8_t* four) {
    std::int32_t x;
    std::memcpy(&x, four, sizeof x);
    const __m256i v = _mm256_set1_epi32(x);
    return {_mm256_and_si256(v, _mm256_set1_epi16(255)), _mm256_srli_epi16(v, 8)};
  }
  static I32 dot(I32 sum, Activations x, Weights w) {
    return {plus_products(sum.low, x.even, w.low_even, x.odd, w.low_odd),
            plus_products(sum.high, x.even, w.high_even, x.odd, w.high_odd)};
  }

  static void store_codes(std::uint8_t* p, F32 v, const CodeFormat& format, std::int64_t count) {
    const __m256i low = codes_of(v.low, format), high = codes_of(v.high, format);
    // Packing works within 128-bit halves; the permutation puts the four quarters back in order.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    const __m128i codes = _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(format.flip)));
    if (count >= 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes);
    alignas(16) std::uint8_t part[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(part), codes);
    if (count > 0) std::memcpy(p, part, static_cast<std::size_t>(count));
  }
  static void store_bytes(std::uint8_t* p, F32 v) {
    const __m256i low = _mm256_cvtps_epi32(v.low), high = _mm256_cvtps_epi32(v.high);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
  static I32 add_line(I32 sum, const std::uint8_t* line) {
    const U8 bytes = Avx2::load(line);
    const __m256i zero = _mm256_setzero_si256();
    return {_mm256_add_epi32(sum.low, _mm256_sad_epu8(bytes.low, zero)),
            _mm256_add_epi32(sum.high, _mm256_sad_epu8(bytes.high, zero))};
  }
  static void copy_line(const std::uint8_t* from, std::int64_t count, std::uint8_t flip, std::uint8_t* line) {
    if (count >= 64) {
      const __m256i flips = _mm256_set1_epi8(static_cast<char>(flip));
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
      store(line, U8{_mm256_xor_si256(low, flips), _mm256_xor_si256(high, flips)});
    } else {
      for (int i = 0; i < 64; ++i) line[i] = static_cast<std::uint8_t>(i < count ? from[i] ^ flip : 0);
    }
  }
  static void extend(const float* p, std::int64_t count, float& low, float& high) {
    __m256 least = _mm256_set1_ps(low), most = _mm256_set1_ps(high);
    for (std::int64_t i = 0; i < count; i += 16) {
      const F32 v = load(p + i, count - i);  // zeros behind the last: they are in the range
      least = _mm256_min_ps(v.high, _mm256_min_ps(v.low, least));
      most = _mm256_max_ps(v.high, _mm256_max_ps(v.low, most));
    }
    alignas(32) float lows[8], highs[8];
    _mm256_store_ps(lows, least);
    _mm256_store_ps(highs, most);
    for (int i = 0; i < 8; ++i) {
      low = lows[i] < low ? lows[i] : low;
      high = highs[i] > high ? highs[i] : high;
    }
  }

 protected:
  static __m256i plus_products(__m256i sum, __m256i a, __m256i b, __m256i c, __m256i d) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    add_now(sum);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(c, d));
    add_now(sum);
    return sum;
  }

 private:
  static __m256i codes_of(__m256 v, const CodeFormat& format) {
    __m256 quotient = _mm256_mul_ps(v, _mm256_set1_ps(format.inverse));
    const __m256 rounded = _mm256_round_ps(quotient, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 distance = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_sub_ps(quotient, rounded));
    const __m256 unsure = _mm256_cmp_ps(distance, _mm256_set1_ps(kSurelyRounded), _CMP_NLT_UQ);
    if (_mm256_movemask_ps(unsure) != 0) quotient = _mm256_div_ps(v, _mm256_set1_ps(format.scale));
    // Of two operands of which one is NaN, these return the second.
    quotient = _mm256_max_ps(quotient, _mm256_set1_ps(static_cast<float>(-format.zero_point)));
    quotient = _mm256_min_ps(quotient, _mm256_set1_ps(static_cast<float>(255 - format.zero_point)));
    return _mm256_add_epi32(_mm256_cvtps_epi32(quotient), _mm256_set1_epi32(format.zero_point));
  }
};

}  // namespace
}  // namespace onnxpress
