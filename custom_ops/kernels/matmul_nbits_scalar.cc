#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_scalar.h"

namespace onnxpress {

const NBitsKernels& nbits_kernels_scalar() {
  static constexpr NBitsKernels kernels = make_kernels<Scalar>();
  return kernels;
}

}  // namespace onnxpress
