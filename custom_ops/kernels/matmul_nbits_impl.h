// The kernels of MatMulNBits, written once over a vector type (simd_<isa>.h) and compiled once an instruction set.
#pragma once

#include <cstdint>

#include "kernels/half.h"
#include "kernels/matmul_nbits_activation.h"
#include "kernels/matmul_nbits_float.h"
#include "kernels/matmul_nbits_int8.h"
#include "kernels/matmul_nbits_kernels.h"
#include "kernels/matmul_nbits_roofline.h"
#include "kernels/matmul_nbits_rows.h"

namespace onnxpress {
namespace {

template <class S>
void to_float(const std::uint16_t* halves, float* floats, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kTile <= count; i += kTile) S::store(floats + i, S::load_half(halves + i));
  for (; i < count; ++i) floats[i] = half_to_float(halves[i]);
}

template <class S>
void to_half(const float* floats, std::uint16_t* halves, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kTile <= count; i += kTile) S::store_half(halves + i, S::load(floats + i));
  for (; i < count; ++i) halves[i] = float_to_half(floats[i]);
}

template <class S>
constexpr NBitsInt8Kernels make_int8_kernels() {
  return {S::kName,
          {},
          1,
          quantize_row<S>,
          {nullptr, nullptr, stream_int8<S, 2>, stream_int8<S, 3>, stream_int8<S, 4>, stream_int8<S, 5>,
           stream_int8<S, 6>, stream_int8<S, 7>, stream_int8<S, 8>},
          spin_dots<S>};
}

template <class S>
constexpr NBitsFloatKernels make_float_kernels() {
  return {S::kName,
          {{},
           {},
           make_float_product<S, IntegerCodes<S, 2>>(),
           make_float_product<S, IntegerCodes<S, 3>>(),
           make_float_product<S, IntegerCodes<S, 4>>(),
           make_float_product<S, IntegerCodes<S, 5>>(),
           make_float_product<S, IntegerCodes<S, 6>>(),
           make_float_product<S, IntegerCodes<S, 7>>(),
           make_float_product<S, IntegerCodes<S, 8>>()},
          activate<S>,
          normalize_row<S>,
          join_halves<S>,
          read<S>,
          to_float<S>,
          to_half<S>};
}

}  // namespace
}  // namespace onnxpress
