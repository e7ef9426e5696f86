#include "kernels/attention_avx2.h"
#include "kernels/cached_attention_impl.h"

namespace onnxpress {

extern constexpr AttentionKernels attention_avx2 = make_attention_kernels<Avx2Attention>();

}  // namespace onnxpress
