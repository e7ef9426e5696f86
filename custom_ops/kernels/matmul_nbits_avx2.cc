#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avx2.h"

namespace onnxpress {

extern constexpr NBitsInt8Kernels nbits_int8_avx2 = make_int8_kernels<Avx2>();

extern constexpr NBitsFloatKernels nbits_float_avx2 = make_float_kernels<Avx2>();

}  // namespace onnxpress
