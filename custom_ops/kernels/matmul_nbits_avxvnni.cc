#include "kernels/matmul_nbits_impl.h"
#include "kernels/simd_avxvnni.h"

namespace onnxpress {

extern constexpr NBitsInt8Kernels nbits_int8_avxvnni = make_int8_kernels<AvxVnni>();

}  // namespace onnxpress
