#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avxvnni.h"

namespace onnxpress {

const NBitsInt8Kernels& nbits_int8_avxvnni() {
  static constexpr NBitsInt8Kernels kernels = make_int8_kernels<AvxVnni>();
  return kernels;
}

}  // namespace onnxpress
