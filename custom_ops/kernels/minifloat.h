// Codes of 4, 6 and 8 bits that are floating-point numbers: reference/minifloat.py says what each stands for.
//
// Functions are static: see matmul_nbits_impl.h.
#pragma once

#include <cstdint>

#include "kernels/half.h"

namespace onnxpress {

// What the codes of a weight are.
enum class CodeKind { kInteger, kE4M3FN, kE5M2, kE3M4, kE3M2, kE2M3, kE2M1, kNF4 };

// The fields of a code, from the highest bit down: sign, exponent, mantissa.
struct MiniFloat {
  const char* name;
  int exponent, mantissa, bias;  // without exponent, the code is an index into a table
  int largest;                   // of the codes that are numbers, sign apart

  constexpr int bits() const { return 1 + exponent + mantissa; }
};

// In the order of CodeKind, without integers.
inline constexpr MiniFloat kMiniFloats[] = {
    {"e4m3fn", 4, 3, 7, 0x7e}, {"e5m2", 5, 2, 15, 0x7b}, {"e3m4", 3, 4, 3, 0x6f}, {"e3m2", 3, 2, 3, 0x1f},
    {"e2m3", 2, 3, 1, 0x1f},   {"e2m1", 2, 1, 1, 0x07},  {"nf4", 0, 3, 0, 0x07},
};
inline constexpr int kMiniFloatFormats = static_cast<int>(sizeof kMiniFloats / sizeof *kMiniFloats);

static constexpr int index_of(CodeKind kind) { return static_cast<int>(kind) - 1; }
static_assert(index_of(CodeKind::kNF4) + 1 == kMiniFloatFormats, "a row for each kind of codes, the last named here");
static constexpr const MiniFloat& minifloat(CodeKind kind) { return kMiniFloats[index_of(kind)]; }

// The value of a code as the bits of a float32, exact.
static constexpr std::uint32_t minifloat_bits(CodeKind kind, int code) {
  // QLoRA (arXiv 2305.14314), appendix E.
  constexpr std::uint32_t kNormal[16] = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f,
                                         0xbdba7871, 0x00000000, 0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a,
                                         0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
  if (kind == CodeKind::kNF4) return kNormal[code & 15];
  const MiniFloat& f = minifloat(kind);
  const std::uint32_t sign = static_cast<std::uint32_t>(code >> (f.bits() - 1) & 1) << 31;
  const int magnitude = code & ((1 << (f.bits() - 1)) - 1);
  if (magnitude > f.largest) return sign | (kind == CodeKind::kE5M2 && magnitude == 0x7c ? 0x7f800000u : 0x7fc00000u);
  if (magnitude == 0) return sign;
  int exponent = magnitude >> f.mantissa, mantissa = magnitude & ((1 << f.mantissa) - 1);
  if (exponent == 0) {
    for (exponent = 1; mantissa < 1 << f.mantissa; --exponent) mantissa *= 2;
    mantissa -= 1 << f.mantissa;
  }
  return sign | static_cast<std::uint32_t>(exponent - f.bias + 127) << 23 |
         static_cast<std::uint32_t>(mantissa) << (23 - f.mantissa);
}

static inline float minifloat_value(CodeKind kind, int code) { return bits_to_float(minifloat_bits(kind, code)); }

// The same as bfloat16, which is exact but for NF4.
static constexpr std::uint16_t minifloat_bfloat16(CodeKind kind, int code) {
  const std::uint32_t bits = minifloat_bits(kind, code);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A scale of 8 exponent bits, 2^(code - 127), of which 255 is none.
static inline float exponent_to_float(std::uint8_t code) {
  return bits_to_float(code == 0 ? 0x00400000u : static_cast<std::uint32_t>(code) << 23);
}

}  // namespace onnxpress
