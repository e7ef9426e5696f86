#include "kernels/int8_avxvnni.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

const Int8Kernels& int8_kernels_avxvnni() {
  static constexpr Int8Kernels kernels = make_int8_kernels<Int8AvxVnni>();
  return kernels;
}

}  // namespace onnxpress
