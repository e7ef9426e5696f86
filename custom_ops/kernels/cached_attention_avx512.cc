#include "kernels/attention_avx512.h"
#include "kernels/cached_attention_impl.h"

namespace onnxpress {

extern constexpr AttentionKernels attention_avx512 = make_attention_kernels<Avx512Attention>();

}  // namespace onnxpress
