#include "kernels/matmul_nbits_bfloat16.h"
#include "kernels/minifloat_avx512vbmi.h"
#include "kernels/simd_avx512bf16.h"

namespace onnxpress {

extern constexpr MiniFloatBFloat16Kernels minifloat_bfloat16_avx512bf16{
    {make_bfloat16_product<Avx512Bf16, VbmiPairs<CodeKind::kE4M3FN>>(),
     make_bfloat16_product<Avx512Bf16, VbmiPairs<CodeKind::kE5M2>>(),
     make_bfloat16_product<Avx512Bf16, VbmiPairs<CodeKind::kE3M4>>(),
     make_bfloat16_product<Avx512Bf16, VbmiPairs<CodeKind::kE3M2>>(),
     make_bfloat16_product<Avx512Bf16, VbmiPairs<CodeKind::kE2M3>>(),
     make_bfloat16_product<Avx512Bf16, VbmiPairs<CodeKind::kE2M1>>(),
     make_bfloat16_product<Avx512Bf16, VbmiPairs<CodeKind::kNF4>>()}};
static_assert(has_all_formats(minifloat_bfloat16_avx512bf16));

}  // namespace onnxpress
