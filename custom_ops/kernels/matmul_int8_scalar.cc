#include "kernels/int8_scalar.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

extern constexpr Int8Kernels int8_scalar = make_int8_kernels<Int8Scalar>();

}  // namespace onnxpress
