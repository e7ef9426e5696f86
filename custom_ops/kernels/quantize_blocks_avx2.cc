#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

const QuantizeKernels& quantize_kernels_avx2() {
  static constexpr QuantizeKernels kernels = make_quantize_kernels("avx2");
  return kernels;
}

}  // namespace onnxpress
