#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_neon.h"

namespace onnxpress {

extern constexpr NBitsInt8Kernels nbits_int8_neon = make_int8_kernels<Neon>();

extern constexpr NBitsFloatKernels nbits_float_neon = make_float_kernels<Neon>();

}  // namespace onnxpress
