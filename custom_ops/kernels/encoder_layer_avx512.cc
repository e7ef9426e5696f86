#include "kernels/encoder_layer_impl.h"
#include "kernels/int8_avx512.h"

namespace onnxpress {

extern constexpr EncoderKernels encoder_avx512 = make_encoder_kernels<Int8Avx512>();

}  // namespace onnxpress
