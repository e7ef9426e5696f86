#include "kernels/encoder_layer_impl.h"
#include "kernels/int8_scalar.h"

namespace onnxpress {

extern constexpr EncoderKernels encoder_scalar = make_encoder_kernels<Int8Scalar>();

}  // namespace onnxpress
