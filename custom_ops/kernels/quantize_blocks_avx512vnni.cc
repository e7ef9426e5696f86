#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

extern constexpr QuantizeKernels quantize_avx512vnni = make_quantize_kernels("avx512vnni");

}  // namespace onnxpress
