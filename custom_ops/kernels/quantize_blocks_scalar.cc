#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

const QuantizeKernels& quantize_kernels_scalar() {
  static constexpr QuantizeKernels kernels = make_quantize_kernels("scalar");
  return kernels;
}

}  // namespace onnxpress
