#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

extern constexpr QuantizeKernels quantize_avx512 = make_quantize_kernels("avx512");

}  // namespace onnxpress
