#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avx512vnni.h"

namespace onnxpress {

const NBitsInt8Kernels& nbits_int8_avx512vnni() {
  static constexpr NBitsInt8Kernels kernels = make_int8_kernels<Avx512Vnni>();
  return kernels;
}

const NBitsFloatKernels& nbits_float_avx512vnni() {
  static constexpr NBitsFloatKernels kernels = make_float_kernels<Avx512Vnni>();
  return kernels;
}

}  // namespace onnxpress
