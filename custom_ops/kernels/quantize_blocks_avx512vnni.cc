#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

const QuantizeKernels& quantize_kernels_avx512vnni() { return kQuantizeKernels; }

}  // namespace onnxpress
