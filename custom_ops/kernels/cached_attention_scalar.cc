#include "kernels/attention_scalar.h"
#include "kernels/cached_attention_impl.h"

namespace onnxpress {

extern constexpr AttentionKernels attention_scalar = make_attention_kernels<ScalarAttention>();

}  // namespace onnxpress
