// Small floating-point codes by a table of all.
#pragma once

#include "kernels/matmul_nbits_codes.h"
#include "kernels/minifloat.h"
#include "kernels/simd_scalar.h"

namespace onnxpress {
namespace {

// Once for all formats and groups: 64 look-ups unrolled in each would take compilers minutes.
__attribute__((noinline)) inline void look_up(const std::uint32_t* table, const Scalar::U8& codes,
                                              Scalar::F32 (&v)[4]) {
  for (int j = 0; j < 4; ++j) {
    std::uint32_t lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = table[codes.v[4 * i + j]];
    std::memcpy(&v[j], lanes, sizeof lanes);
  }
}

template <CodeKind Kind>
struct ScalarMiniFloats {
  static constexpr int kBits = minifloat(Kind).bits();
  static constexpr bool kHasZeroPoints = false;

  template <int G>
  static void floats(const std::uint8_t* span, Scalar::F32 (&v)[4]) {
    static constexpr Table kTable;
    look_up(kTable.bits, load_group<Scalar, kBits, G>(span), v);
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
