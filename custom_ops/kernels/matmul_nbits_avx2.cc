#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avx2.h"

namespace onnxpress {

const NBitsInt8Kernels& nbits_int8_avx2() {
  static constexpr NBitsInt8Kernels kernels = make_int8_kernels<Avx2>();
  return kernels;
}

const NBitsFloatKernels& nbits_float_avx2() {
  static constexpr NBitsFloatKernels kernels = make_float_kernels<Avx2>();
  return kernels;
}

}  // namespace onnxpress
