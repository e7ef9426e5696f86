#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

extern constexpr QuantizeKernels quantize_scalar = make_quantize_kernels("scalar");

}  // namespace onnxpress
