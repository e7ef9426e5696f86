#include "kernels/encoder_layer_impl.h"
#include "kernels/int8_i8mm.h"

namespace onnxpress {

extern constexpr EncoderKernels encoder_i8mm = make_encoder_kernels<Int8I8mm>();

}  // namespace onnxpress
