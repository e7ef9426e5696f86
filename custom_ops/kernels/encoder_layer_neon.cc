#include "kernels/encoder_layer_impl.h"
#include "kernels/int8_neon.h"

namespace onnxpress {

extern constexpr EncoderKernels encoder_neon = make_encoder_kernels<Int8Neon>();

}  // namespace onnxpress
