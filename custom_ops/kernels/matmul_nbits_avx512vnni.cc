#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avx512vnni.h"

namespace onnxpress {

extern constexpr NBitsInt8Kernels nbits_int8_avx512vnni = make_int8_kernels<Avx512Vnni>();

}  // namespace onnxpress
