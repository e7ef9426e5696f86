#include "kernels/matmul_nbits_float.h"
#include "kernels/minifloat_avx512.h"

namespace onnxpress {

extern constexpr MiniFloatKernels minifloat_avx512{{make_float_product<Avx512, Avx512MiniFloats<CodeKind::kE4M3FN>>(),
                                                    make_float_product<Avx512, Avx512MiniFloats<CodeKind::kE5M2>>(),
                                                    make_float_product<Avx512, Avx512MiniFloats<CodeKind::kE3M4>>(),
                                                    make_float_product<Avx512, Avx512MiniFloats<CodeKind::kE3M2>>(),
                                                    make_float_product<Avx512, Avx512MiniFloats<CodeKind::kE2M3>>(),
                                                    make_float_product<Avx512, Avx512MiniFloats<CodeKind::kE2M1>>(),
                                                    make_float_product<Avx512, Avx512MiniFloats<CodeKind::kNF4>>()}};
static_assert(has_all_formats(minifloat_avx512));

}  // namespace onnxpress
