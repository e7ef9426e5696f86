#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_scalar.h"

namespace onnxpress {

const NBitsInt8Kernels& nbits_int8_scalar() {
  static constexpr NBitsInt8Kernels kernels = make_int8_kernels<Scalar>();
  return kernels;
}

const NBitsFloatKernels& nbits_float_scalar() {
  static constexpr NBitsFloatKernels kernels = make_float_kernels<Scalar>();
  return kernels;
}

}  // namespace onnxpress
