#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avx512vnni.h"

namespace onnxpress {

const NBitsKernels& nbits_kernels_avx512vnni() {
  static constexpr NBitsKernels kernels = make_kernels<Avx512Vnni>();
  return kernels;
}

}  // namespace onnxpress
