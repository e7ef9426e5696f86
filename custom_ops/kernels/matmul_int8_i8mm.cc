#include "kernels/int8_i8mm.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

extern constexpr Int8Kernels int8_i8mm = make_int8_kernels<Int8I8mm>();

}  // namespace onnxpress
