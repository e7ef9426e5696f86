#include "kernels/int8_avx2.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

const Int8Kernels& int8_kernels_avx2() {
  static constexpr Int8Kernels kernels = make_int8_kernels<Int8Avx2>();
  return kernels;
}

}  // namespace onnxpress
