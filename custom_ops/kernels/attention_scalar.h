// What attention needs beside simd_scalar.h.
#pragma once

#include "kernels/simd_scalar.h"

namespace onnxpress {
namespace {

struct ScalarAttention : Scalar {
  // 16 rows, of which `left` columns are read, to 16 columns of `out`; columns beyond those read become 0.
  static void transpose(const float* p, std::int64_t stride, std::int64_t left, float* out, std::int64_t out_stride) {
    for (int row = 0; row < 16; ++row, p += stride) {
      for (int column = 0; column < 16; ++column) out[column * out_stride + row] = column < left ? p[column] : 0.0f;
    }
  }
};

}  // namespace
}  // namespace onnxpress
