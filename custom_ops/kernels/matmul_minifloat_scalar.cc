#include "kernels/matmul_nbits_float.h"
#include "kernels/minifloat_scalar.h"

namespace onnxpress {

extern constexpr MiniFloatKernels minifloat_scalar{{make_float_product<Scalar, ScalarMiniFloats<CodeKind::kE4M3FN>>(),
                                                    make_float_product<Scalar, ScalarMiniFloats<CodeKind::kE5M2>>(),
                                                    make_float_product<Scalar, ScalarMiniFloats<CodeKind::kE3M4>>(),
                                                    make_float_product<Scalar, ScalarMiniFloats<CodeKind::kE3M2>>(),
                                                    make_float_product<Scalar, ScalarMiniFloats<CodeKind::kE2M3>>(),
                                                    make_float_product<Scalar, ScalarMiniFloats<CodeKind::kE2M1>>(),
                                                    make_float_product<Scalar, ScalarMiniFloats<CodeKind::kNF4>>()}};
static_assert(has_all_formats(minifloat_scalar));

}  // namespace onnxpress
