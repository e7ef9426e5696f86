#include "kernels/encoder_layer_impl.h"
#include "kernels/int8_avx512vnni.h"

namespace onnxpress {

extern constexpr EncoderKernels encoder_avx512vnni = make_encoder_kernels<Int8Avx512Vnni>();

}  // namespace onnxpress
