#include "kernels/int8_neon.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

extern constexpr Int8Kernels int8_neon = make_int8_kernels<Int8Neon>();

}  // namespace onnxpress
