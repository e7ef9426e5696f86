#include "kernels/matmul_nbits_bfloat16.h"
#include "kernels/simd_avx512bf16.h"

namespace onnxpress {

const NBitsBFloat16Kernels& nbits_bfloat16_avx512bf16() {
  static constexpr NBitsBFloat16Kernels kernels = make_bfloat16_kernels<Avx512Bf16>();
  return kernels;
}

}  // namespace onnxpress
