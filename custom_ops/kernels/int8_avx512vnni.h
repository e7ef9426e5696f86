// AVX-512 with 4-way dot products of bytes; int8_scalar.h says what each function means.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/int8_avx512.h"

namespace onnxpress {
namespace {

struct Int8Avx512Vnni : Int8Avx512 {
  static constexpr const char* kName = "avx512vnni";
  static constexpr Int8Dots kInt8Dots = Int8Dots::kNative;
  static constexpr int kRows = 6;
  static constexpr int kInt8Rows = kRows;

  // 32 registers: 6 rows x 4 tiles of sums, 4 weights and a broadcast make 29. One row streams more tiles.
  template <int Rows>
  static constexpr int int8_tiles() {
    return Rows == 1 ? 8 : 4;
  }

  using Weights = __m512i;
  using Activations = __m512i;
  static Weights weights(const std::int8_t* line) { return _mm512_load_si512(line); }
  static Activations activations(const std::uint8_t* four) {
    std::int32_t x;
    std::memcpy(&x, four, sizeof x);
    return _mm512_set1_epi32(x);
  }
  static I32 dot(I32 sum, Activations x, Weights w) { return _mm512_dpbusd_epi32(sum, x, w); }

  static I32 add_line(I32 sum, const std::uint8_t* line) {
    return _mm512_dpbusd_epi32(sum, _mm512_load_si512(line), _mm512_set1_epi8(1));
  }
};

}  // namespace
}  // namespace onnxpress
