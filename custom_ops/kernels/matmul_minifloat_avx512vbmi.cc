#include "kernels/matmul_nbits_float.h"
#include "kernels/minifloat_avx512vbmi.h"

namespace onnxpress {
namespace {

struct Avx512Vbmi : Avx512 {
  static constexpr const char* kName = "avx512vbmi";
};

template <CodeKind Kind>
constexpr NBitsFloatProduct make_product() {
  return make_float_product<Avx512Vbmi, Avx512MiniFloats<Kind, VbmiPairs<Kind>>>();
}

}  // namespace

extern constexpr MiniFloatKernels minifloat_avx512vbmi{{make_product<CodeKind::kE4M3FN>(),
                                                        make_product<CodeKind::kE5M2>(),
                                                        make_product<CodeKind::kE3M4>(),
                                                        {},
                                                        {},
                                                        {},
                                                        {}}};

}  // namespace onnxpress
