#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avx512.h"

namespace onnxpress {

extern constexpr NBitsInt8Kernels nbits_int8_avx512 = make_int8_kernels<Avx512>();

extern constexpr NBitsFloatKernels nbits_float_avx512 = make_float_kernels<Avx512>();

}  // namespace onnxpress
