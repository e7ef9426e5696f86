#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

const QuantizeKernels& quantize_kernels_avx2() { return kQuantizeKernels; }

}  // namespace onnxpress
