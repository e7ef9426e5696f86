#include "kernels/int8_avx512vnni.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

const Int8Kernels& int8_kernels_avx512vnni() {
  static constexpr Int8Kernels kernels = make_int8_kernels<Int8Avx512Vnni>();
  return kernels;
}

}  // namespace onnxpress
