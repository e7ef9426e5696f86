// How codes of a packed weight become numbers: what the kernels of MatMulNBits are templates of.
//
// Such a type has, for group G of a span,
//   floats<G>(span, v): the codes of each column's four k as v[0] to v[3];
//   pairs<G>(span): the same as bfloat16, where the vector type multiplies those, less the middle of their range.
#pragma once

#include "kernels/matmul_nbits_tiles.h"

namespace onnxpress {
namespace {

template <class S, int Bits>
struct IntegerCodes {
  static constexpr bool kHasZeroPoints = true;

  template <int G>
  __attribute__((always_inline)) static void floats(const std::uint8_t* span, typename S::F32 (&v)[4]) {
    const auto codes = load_group<S, Bits, G>(span);
    unroll<4>(ONNXPRESS_EACH(j) { v[j.value] = S::template byte_to_float<decltype(j)::value>(codes); });
  }

  template <int G>
  __attribute__((always_inline)) static auto pairs(const std::uint8_t* span) {
    return S::template centered<Bits>(load_group<S, Bits, G>(span));
  }
};

}  // namespace
}  // namespace onnxpress
