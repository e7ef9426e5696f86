// What attention needs beside simd_avx2.h.
#pragma once

#include "kernels/simd_avx2.h"

namespace onnxpress {
namespace {

struct Avx2Attention : Avx2 {
  // As ScalarAttention has it.
  static void transpose(const float* p, std::int64_t stride, std::int64_t left, float* out, std::int64_t out_stride) {
    for (int half = 0; half < 2; ++half, p += 8 * stride, out += 8) {
      __m256 low[8], high[8];
      for (int row = 0; row < 8; ++row) {
        const F32 v = load(p + row * stride, left);
        low[row] = v.low;
        high[row] = v.high;
      }
      transpose8(low, out, out_stride);
      transpose8(high, out + 8 * out_stride, out_stride);
    }
  }

 private:
  static void transpose8(const __m256 (&r)[8], float* out, std::int64_t stride) {
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    // u[4 i + j] has columns j and 4 + j of rows 4 i to 4 i + 3.
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      _mm256_storeu_ps(out + j * stride, _mm256_permute2f128_ps(u[j], u[4 + j], 0x20));
      _mm256_storeu_ps(out + (4 + j) * stride, _mm256_permute2f128_ps(u[j], u[4 + j], 0x31));
    }
  }
};

}  // namespace
}  // namespace onnxpress
