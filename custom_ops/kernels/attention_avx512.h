// What attention needs beside simd_avx512.h.
#pragma once

#include "kernels/simd_avx512.h"

namespace onnxpress {
namespace {

struct Avx512Attention : Avx512 {
  // As ScalarAttention has it.
  static void transpose(const float* p, std::int64_t stride, std::int64_t left, float* out, std::int64_t out_stride) {
    __m512 r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = load(p + i * stride, left);
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // r[4 i + j] then has columns j, 4 + j, 8 + j and 12 + j of rows 4 i to 4 i + 3.
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      const __m512 even = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88), odd = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
      const __m512 even2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
      const __m512 odd2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
      _mm512_storeu_ps(out + j * out_stride, _mm512_shuffle_f32x4(even, even2, 0x88));
      _mm512_storeu_ps(out + (4 + j) * out_stride, _mm512_shuffle_f32x4(odd, odd2, 0x88));
      _mm512_storeu_ps(out + (8 + j) * out_stride, _mm512_shuffle_f32x4(even, even2, 0xdd));
      _mm512_storeu_ps(out + (12 + j) * out_stride, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    }
  }
};

}  // namespace
}  // namespace onnxpress
