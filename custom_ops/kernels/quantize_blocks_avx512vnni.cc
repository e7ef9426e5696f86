#include "kernels/quantize_blocks_impl.h"

namespace onnxpress {

const QuantizeKernels& quantize_kernels_avx512vnni() {
  static constexpr QuantizeKernels kernels = make_quantize_kernels("avx512vnni");
  return kernels;
}

}  // namespace onnxpress
