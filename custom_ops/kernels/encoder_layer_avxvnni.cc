#include "kernels/encoder_layer_impl.h"
#include "kernels/int8_avxvnni.h"

namespace onnxpress {

extern constexpr EncoderKernels encoder_avxvnni = make_encoder_kernels<Int8AvxVnni>();

}  // namespace onnxpress
