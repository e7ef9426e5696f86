#include "kernels/encoder_layer_impl.h"
#include "kernels/int8_avx2.h"

namespace onnxpress {

extern constexpr EncoderKernels encoder_avx2 = make_encoder_kernels<Int8Avx2>();

}  // namespace onnxpress
