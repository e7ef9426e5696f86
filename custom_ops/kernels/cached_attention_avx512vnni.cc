#include "kernels/attention_avx512vnni.h"
#include "kernels/cached_attention_impl.h"

namespace onnxpress {

extern constexpr AttentionKernels attention_avx512vnni = make_attention_kernels<Avx512VnniAttention>();

}  // namespace onnxpress
