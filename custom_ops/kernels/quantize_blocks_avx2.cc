#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

extern constexpr QuantizeKernels quantize_avx2 = make_quantize_kernels("avx2");

}  // namespace onnxpress
