#include "kernels/int8_avx512vnni.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

extern constexpr Int8Kernels int8_avx512vnni = make_int8_kernels<Int8Avx512Vnni>();

}  // namespace onnxpress
