#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_neon.h"

namespace onnxpress {

const NBitsInt8Kernels& nbits_int8_neon() {
  static constexpr NBitsInt8Kernels kernels = make_int8_kernels<Neon>();
  return kernels;
}

const NBitsFloatKernels& nbits_float_neon() {
  static constexpr NBitsFloatKernels kernels = make_float_kernels<Neon>();
  return kernels;
}

}  // namespace onnxpress
