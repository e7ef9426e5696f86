#include "kernels/int8_avx512.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

extern constexpr Int8Kernels int8_avx512 = make_int8_kernels<Int8Avx512>();

}  // namespace onnxpress
