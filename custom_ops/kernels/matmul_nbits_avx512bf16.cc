#include "kernels/matmul_nbits_bfloat16.h"
#include "kernels/simd_avx512bf16.h"

namespace onnxpress {

using S = Avx512Bf16;

extern constexpr NBitsBFloat16Kernels nbits_bfloat16_avx512bf16 = {{{},
                                                                    {},
                                                                    make_bfloat16_product<S, IntegerCodes<S, 2>>(),
                                                                    make_bfloat16_product<S, IntegerCodes<S, 3>>(),
                                                                    make_bfloat16_product<S, IntegerCodes<S, 4>>(),
                                                                    make_bfloat16_product<S, IntegerCodes<S, 5>>(),
                                                                    make_bfloat16_product<S, IntegerCodes<S, 6>>(),
                                                                    make_bfloat16_product<S, IntegerCodes<S, 7>>(),
                                                                    make_bfloat16_product<S, IntegerCodes<S, 8>>()}};

}  // namespace onnxpress
