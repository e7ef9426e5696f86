#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

const QuantizeKernels& quantize_kernels_scalar() { return kQuantizeKernels; }

}  // namespace onnxpress
