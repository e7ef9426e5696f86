#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_scalar.h"

namespace onnxpress {

extern constexpr NBitsInt8Kernels nbits_int8_scalar = make_int8_kernels<Scalar>();

extern constexpr NBitsFloatKernels nbits_float_scalar = make_float_kernels<Scalar>();

}  // namespace onnxpress
