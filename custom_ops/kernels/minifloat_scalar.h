// Small floating-point codes by a table of all.
#pragma once

#include "kernels/matmul_nbits_codes.h"
#include "kernels/minifloat.h"
#include "kernels/simd_scalar.h"

namespace onnxpress {
namespace {

template <CodeKind Kind>
struct ScalarMiniFloats {
  static constexpr int kBits = minifloat(Kind).bits();
  static constexpr bool kHasZeroPoints = false;

  template <int G>
  static void floats(const std::uint8_t* span, Scalar::F32 (&v)[4]) {
    static constexpr Table kTable;
    const Scalar::U8 codes = load_group<Scalar, kBits, G>(span);
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 16; ++i) v[j].v[i] = bits_to_float(kTable.bits[codes.v[4 * i + j]]);
    }
  }

 private:
  struct Table {
    std::uint32_t bits[1 << kBits] = {};
    constexpr Table() {
      for (int code = 0; code < 1 << kBits; ++code) bits[code] = minifloat_bits(Kind, code);
    }
  };
};

}  // namespace
}  // namespace onnxpress
