// Small floating-point codes on Arm. Sign and magnitude go to where float16 has them, as in minifloat_avx2.h.
#pragma once

#include "kernels/matmul_nbits_codes.h"
#include "kernels/minifloat.h"
#include "kernels/simd_neon.h"

namespace onnxpress {
namespace {

template <CodeKind Kind>
struct NeonMiniFloats {
  static constexpr MiniFloat kFormat = minifloat(Kind);
  static constexpr int kBits = kFormat.bits();
  static constexpr bool kHasZeroPoints = false;

  template <int G>
  __attribute__((always_inline)) static void floats(const std::uint8_t* span, Neon::F32 (&v)[4]) {
    const Neon::U8 codes = load_group<Neon, kBits, G>(span);
    unroll<4>(ONNXPRESS_EACH(i) {
      const int16x8_t pairs = vreinterpretq_s16_u8(codes.v[i.value]);
      to_floats(vshlq_n_s16(pairs, 16 - kBits), v[0].v[i.value], v[2].v[i.value]);
      to_floats(kBits == 8 ? pairs : vshlq_n_s16(pairs, 8 - kBits), v[1].v[i.value], v[3].v[i.value]);
    });
  }

 private:
  // From the upper bits of each 16, two k of a column side by side.
  __attribute__((always_inline)) static void to_floats(int16x8_t codes, float32x4_t& first, float32x4_t& second) {
    constexpr int kMagnitude = ((1 << (kBits - 1)) - 1) << (10 - kFormat.mantissa);
    constexpr int kShift = 5 - kFormat.exponent;
    if constexpr (kShift > 0) codes = vshrq_n_s16(codes, kShift);
    const int16x8_t halves = vandq_s16(codes, vdupq_n_s16(static_cast<short>(0x8000 | kMagnitude)));
    const float32x4_t a = vcvt_f32_f16(vreinterpret_f16_s16(vget_low_s16(halves)));
    const float32x4_t b = vcvt_f32_f16(vreinterpret_f16_s16(vget_high_s16(halves)));
    const float32x4_t power = vdupq_n_f32(static_cast<float>(1 << (15 - kFormat.bias)));
    first = vmulq_f32(vuzp1q_f32(a, b), power);
    second = vmulq_f32(vuzp2q_f32(a, b), power);
  }
};

// By four tables, one for each byte of a float32.
template <>
struct NeonMiniFloats<CodeKind::kNF4> {
  static constexpr bool kHasZeroPoints = false;

  template <int G>
  __attribute__((always_inline)) static void floats(const std::uint8_t* span, Neon::F32 (&v)[4]) {
    static constexpr Tables kTables;
    const Neon::U8 codes = load_group<Neon, 4, G>(span);
    unroll<4>(ONNXPRESS_EACH(i) {
      // The four k of four columns, k by k.
      const uint8x16_t c = vqtbl1q_u8(codes.v[i.value], vld1q_u8(kTables.order));
      const auto byte = [&](int which) { return vqtbl1q_u8(vld1q_u8(kTables.bytes[which]), c); };
      const uint8x16_t a = byte(0), b = byte(1), d = byte(2), e = byte(3);
      const uint16x8_t low[2] = {vreinterpretq_u16_u8(vzip1q_u8(a, b)), vreinterpretq_u16_u8(vzip2q_u8(a, b))};
      const uint16x8_t high[2] = {vreinterpretq_u16_u8(vzip1q_u8(d, e)), vreinterpretq_u16_u8(vzip2q_u8(d, e))};
      unroll<2>(ONNXPRESS_EACH(j) {
        constexpr int kHalf = decltype(j)::value;
        v[2 * kHalf].v[i.value] = vreinterpretq_f32_u16(vzip1q_u16(low[kHalf], high[kHalf]));
        v[2 * kHalf + 1].v[i.value] = vreinterpretq_f32_u16(vzip2q_u16(low[kHalf], high[kHalf]));
      });
    });
  }

 private:
  struct Tables {
    std::uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    std::uint8_t bytes[4][16] = {};
    constexpr Tables() {
      for (int code = 0; code < 16; ++code) {
        for (int byte = 0; byte < 4; ++byte) {
          bytes[byte][code] = static_cast<std::uint8_t>(minifloat_bits(CodeKind::kNF4, code) >> 8 * byte);
        }
      }
    }
  };
};

}  // namespace
}  // namespace onnxpress
