// Sixteen columns in four registers of Arm. Included only by files compiled for its dot products of bytes.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "kernels/minifloat.h"

namespace onnxpress {
namespace {

struct Neon {
  static constexpr const char* kName = "neon";
  // 32 registers: 3 rows x 4 of int32 and of float sums are 24, 4 weights and a broadcast make 29.
  static constexpr int kRows = 3;
  static constexpr int kFloatRows = 6;
  static constexpr int kPanelTiles = 1;
  template <int Rows>
  static constexpr int stream_tiles() {
    return Rows == 1 ? 2 : kPanelTiles;
  }

  struct U8 {
    uint8x16_t v[4];
  };
  struct I32 {
    int32x4_t v[4];
  };
  struct F32 {
    float32x4_t v[4];
  };

  static U8 load(const std::uint8_t* p) {
    return map<U8>([=](int i) { return vld1q_u8(p + 16 * i); });
  }
  static void store(std::uint8_t* p, const U8& a) {
    for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, a.v[i]);
  }
  static U8 bit_or(const U8& a, const U8& b) {
    return map<U8>([&](int i) { return vorrq_u8(a.v[i], b.v[i]); });
  }
  // Bits `mask` of each byte after a shift right by Shift (left where negative).
  template <int Shift>
  static U8 field(const U8& a, int mask) {
    const uint8x16_t m = vdupq_n_u8(static_cast<std::uint8_t>(mask));
    return map<U8>([&](int i) {
      uint8x16_t v = a.v[i];
      if constexpr (Shift > 0) v = vshrq_n_u8(v, Shift);
      if constexpr (Shift < 0) v = vshlq_n_u8(v, -Shift);
      return vandq_u8(v, m);
    });
  }
  // Byte J of each column's four, as floats.
  template <int J>
  static F32 byte_to_float(const U8& a) {
    return map<F32>([&](int i) {
      uint32x4_t v = vreinterpretq_u32_u8(a.v[i]);
      if constexpr (J > 0) v = vshrq_n_u32(v, 8 * J);
      if constexpr (J < 3) v = vandq_u32(v, vdupq_n_u32(255));
      return vcvtq_f32_u32(v);
    });
  }

  static F32 zero() { return set1(0); }
  static F32 set1(float a) {
    return map<F32>([=](int) { return vdupq_n_f32(a); });
  }
  static F32 load(const float* p) {
    return map<F32>([=](int i) { return vld1q_f32(p + 4 * i); });
  }
  static F32 load_half(const std::uint16_t* p) {
    return map<F32>([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static F32 load_bfloat16(const std::uint16_t* p) {
    return map<F32>([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static F32 load_exponents(const std::uint8_t* p) {
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = exponent_to_float(p[i]);
    return load(values);
  }
  static F32 load_bytes(const std::uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
    return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
             vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
  }
  static F32 load(const float* p, std::int64_t count) {
    if (count >= 16) return load(p);
    float part[16] = {};
    if (count > 0) std::memcpy(part, p, static_cast<std::size_t>(count) * sizeof(float));
    return load(part);
  }
  static void store(float* p, const F32& a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
  }
  static void store(float* p, const F32& a, std::int64_t count) {
    if (count >= 16) return store(p, a);
    float part[16];
    store(part, a);
    if (count > 0) std::memcpy(p, part, static_cast<std::size_t>(count) * sizeof(float));
  }
  static void store_half(std::uint16_t* p, const F32& a) {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
  }
  static F32 add(const F32& a, const F32& b) {
    return map<F32>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
  }
  static F32 sub(const F32& a, const F32& b) {
    return map<F32>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
  }
  static F32 mul(const F32& a, const F32& b) {
    return map<F32>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
  }
  static F32 fma(const F32& a, const F32& b, const F32& c) {
    return map<F32>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
  }
  static F32 fnma(const F32& a, const F32& b, const F32& c) {
    return map<F32>([&](int i) { return vfmsq_f32(c.v[i], a.v[i], b.v[i]); });
  }
  static F32 div(const F32& a, const F32& b) {
    return map<F32>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
  }
  // The second where one is NaN, which the instructions for it would take.
  static F32 min(const F32& a, const F32& b) {
    return map<F32>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  static F32 max(const F32& a, const F32& b) {
    return map<F32>([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  // 2^n for an integer from -126 to 127; 0 for -127 and infinity for 128.
  static F32 pow2(const F32& n) {
    const int32x4_t bias = vdupq_n_s32(127);
    return map<F32>(
        [&](int i) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), bias), 23)); });
  }
  // a * 2^n for an integer n from -126 on.
  static F32 scaled(const F32& a, const F32& n) { return mul(a, pow2(n)); }
  static F32 if_negative(const F32& x, const F32& then, const F32& otherwise) {
    return map<F32>([&](int i) {
      const uint32x4_t negative = vcltzq_s32(vreinterpretq_s32_f32(x.v[i]));
      return vbslq_f32(negative, then.v[i], otherwise.v[i]);
    });
  }
  // Compared as integers, in whose order NaN is above infinity: a NaN is never lost.
  static float max_abs(const float* p, std::int64_t count) {
    uint32x4_t peak = vdupq_n_u32(0);
    for (std::int64_t k = 0; k < count; k += 16) {
      const F32 values = load(p + k, count - k);
      for (float32x4_t v : values.v) peak = vmaxq_u32(peak, vreinterpretq_u32_f32(vabsq_f32(v)));
    }
    return bits_to_float(vmaxvq_u32(peak));
  }
  // 16 values times `factor`, rounded to nearest even, as int8; returns their sum in each lane.
  static I32 quantize(const float* p, std::int64_t count, const F32& factor, std::int8_t* out, const I32& sum) {
    const F32 scaled = mul(load(p, count), factor);
    const I32 v = map<I32>([&](int i) { return vcvtnq_s32_f32(scaled.v[i]); });
    const int16x8_t low = vcombine_s16(vmovn_s32(v.v[0]), vmovn_s32(v.v[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(v.v[2]), vmovn_s32(v.v[3]));
    vst1q_s8(out, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    return map<I32>([&](int i) { return vaddq_s32(sum.v[i], v.v[i]); });
  }
  // 8 bytes of one row and 8 of another.
  static int8x16_t pair(const std::int8_t* a, const std::int8_t* b) {
    const int64x2_t first = vcombine_s64(vreinterpret_s64_s8(vld1_s8(a)), vdup_n_s64(0));
    return vreinterpretq_s8_s64(vld1q_lane_s64(reinterpret_cast<const std::int64_t*>(b), first, 1));
  }
  static I32 zero_int() {
    return map<I32>([](int) { return vdupq_n_s32(0); });
  }
  static std::int32_t total(const I32& a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
  }

  // The sum over k of code * activation for 16 columns, minus zero_point * sum of activations.
  //
  // Both sides of the dot product are signed. Codes of up to 7 bits are so as they are, of 8 bits 128 is taken away.
  template <int Bits>
  struct Dot {
    I32 sum;
    void start(std::int32_t zero_point, std::int32_t activations) {
      const std::int32_t offset = Bits == 8 ? zero_point - 128 : zero_point;
      sum = map<I32>([=](int) { return vdupq_n_s32(-offset * activations); });
    }
    // Of 16 activations, which several groups share, an instruction takes four by their place.
    template <int Index, int Run>
    void add(const U8& codes, const std::int8_t* four) {
      constexpr int kPlace = Index % 4;
      const int8x16_t activations = vld1q_s8(four - 4 * kPlace);
      for (int i = 0; i < 4; ++i) {
        const uint8x16_t code = Bits == 8 ? veorq_u8(codes.v[i], vdupq_n_u8(128)) : codes.v[i];
        sum.v[i] = vdotq_laneq_s32(sum.v[i], vreinterpretq_s8_u8(code), activations, kPlace);
      }
    }
    F32 value() const {
      return map<F32>([this](int i) { return vcvtq_f32_s32(sum.v[i]); });
    }
  };

 protected:
  template <class Vector, class F>
  static Vector map(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
};

}  // namespace
}  // namespace onnxpress
