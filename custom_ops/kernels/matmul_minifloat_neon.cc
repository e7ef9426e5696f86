#include "kernels/matmul_nbits_float.h"
#include "kernels/minifloat_neon.h"

namespace onnxpress {

extern constexpr MiniFloatKernels minifloat_neon{{make_float_product<Neon, NeonMiniFloats<CodeKind::kE4M3FN>>(),
                                                  make_float_product<Neon, NeonMiniFloats<CodeKind::kE5M2>>(),
                                                  make_float_product<Neon, NeonMiniFloats<CodeKind::kE3M4>>(),
                                                  make_float_product<Neon, NeonMiniFloats<CodeKind::kE3M2>>(),
                                                  make_float_product<Neon, NeonMiniFloats<CodeKind::kE2M3>>(),
                                                  make_float_product<Neon, NeonMiniFloats<CodeKind::kE2M1>>(),
                                                  make_float_product<Neon, NeonMiniFloats<CodeKind::kNF4>>()}};
static_assert(has_all_formats(minifloat_neon));

}  // namespace onnxpress
