#include "kernels/int8_scalar.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

const Int8Kernels& int8_kernels_scalar() {
  static constexpr Int8Kernels kernels = make_int8_kernels<Int8Scalar>();
  return kernels;
}

}  // namespace onnxpress
