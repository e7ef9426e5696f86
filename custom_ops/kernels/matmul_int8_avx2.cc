#include "kernels/int8_avx2.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

extern constexpr Int8Kernels int8_avx2 = make_int8_kernels<Int8Avx2>();

}  // namespace onnxpress
