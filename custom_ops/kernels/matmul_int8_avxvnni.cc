#include "kernels/int8_avxvnni.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {

extern constexpr Int8Kernels int8_avxvnni = make_int8_kernels<Int8AvxVnni>();

}  // namespace onnxpress
