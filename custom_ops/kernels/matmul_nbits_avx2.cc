#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avx2.h"

namespace onnxpress {

const NBitsKernels& nbits_kernels_avx2() {
  static constexpr NBitsKernels kernels = make_kernels<Avx2>();
  return kernels;
}

}  // namespace onnxpress
