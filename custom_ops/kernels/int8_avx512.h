// What matmul_int8 needs beyond simd_avx512.h; int8_scalar.h says what each function means.
#pragma once

#include <cstdint>

#include "kernels/matmul_int8_kernels.h"
#include "kernels/simd_avx512.h"

namespace onnxpress {
namespace {

// vpmaddubsw would saturate: bytes are widened to 16 bits, as in int8_avx2.h.
struct Int8Avx512 : Avx512 {
  static constexpr Int8Dots kInt8Dots = Int8Dots::kWidened;
  static constexpr int kInt8Rows = 6;

  // 32 registers: 6 rows x 3 tiles of sums, 6 of weights, 2 of activations and a product make 27.
  template <int Rows>
  static constexpr int int8_tiles() {
    return Rows == 1 ? 4 : 3;
  }

  using Avx512::load;
  using Avx512::set1;
  static I32 set1(std::int32_t v) { return _mm512_set1_epi32(v); }
  static I32 load(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  using Avx512::mul;
  using Avx512::sub;
  static I32 sub(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
  static I32 mul(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }
  static F32 to_float(I32 v) { return _mm512_cvtepi32_ps(v); }

  struct Weights {
    __m512i even, odd;
  };
  using Activations = Weights;
  static Weights weights(const std::int8_t* line) {
    const __m512i v = _mm512_load_si512(line);
    return {even_of(v), _mm512_srai_epi16(v, 8)};
  }
  static Activations activations(const std::uint8_t* four) {
    std::int32_t x;
    std::memcpy(&x, four, sizeof x);
    const __m512i v = _mm512_set1_epi32(x);
    return {_mm512_and_si512(v, _mm512_set1_epi16(255)), _mm512_srli_epi16(v, 8)};
  }
  static I32 dot(I32 sum, Activations x, Weights w) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(x.even, w.even));
    add_now(sum);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(x.odd, w.odd));
    add_now(sum);
    return sum;
  }

  static void store_codes(std::uint8_t* p, F32 v, const CodeFormat& format, std::int64_t count) {
    F32 quotient = mul(v, set1(format.inverse));
    const F32 rounded = _mm512_roundscale_ps(quotient, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F32 distance = _mm512_abs_ps(sub(quotient, rounded));
    const __mmask16 unsure = _mm512_cmp_ps_mask(distance, set1(kSurelyRounded), _CMP_NLT_UQ);
    if (unsure != 0) quotient = _mm512_div_ps(v, set1(format.scale));
    // Of two operands of which one is NaN, these return the second.
    quotient = _mm512_max_ps(quotient, set1(static_cast<float>(-format.zero_point)));
    quotient = _mm512_min_ps(quotient, set1(static_cast<float>(255 - format.zero_point)));
    const I32 ints = _mm512_add_epi32(_mm512_cvtps_epi32(quotient), set1(format.zero_point));
    const __m128i codes = _mm_xor_si128(_mm512_cvtepi32_epi8(ints), _mm_set1_epi8(static_cast<char>(format.flip)));
    if (count >= 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes);
    } else if (count > 0) {
      _mm_mask_storeu_epi8(p, static_cast<__mmask16>((1u << count) - 1u), codes);
    }
  }
  static void store_bytes(std::uint8_t* p, F32 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  static I32 add_line(I32 sum, const std::uint8_t* line) {
    return _mm512_add_epi32(sum, _mm512_sad_epu8(_mm512_load_si512(line), _mm512_setzero_si512()));
  }
  static void copy_line(const std::uint8_t* from, std::int64_t count, std::uint8_t flip, std::uint8_t* line) {
    const __mmask64 mask = count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(mask, from);
    _mm512_store_si512(line, _mm512_xor_si512(bytes, _mm512_maskz_set1_epi8(mask, static_cast<char>(flip))));
  }
  static void extend(const float* p, std::int64_t count, float& low, float& high) {
    F32 least = set1(low), most = set1(high);
    for (std::int64_t i = 0; i < count; i += 16) {
      const F32 v = load(p + i, count - i);  // zeros behind the last: they are in the range
      least = _mm512_min_ps(v, least);
      most = _mm512_max_ps(v, most);
    }
    low = _mm512_reduce_min_ps(least);
    high = _mm512_reduce_max_ps(most);
  }
};

}  // namespace
}  // namespace onnxpress
