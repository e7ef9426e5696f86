// Sixteen columns in plain arrays: runs anywhere, and compilers turn most of it into the vectors of the machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/minifloat.h"

namespace onnxpress {
namespace {

struct Scalar {
  static constexpr const char* kName = "scalar";
  static constexpr int kRows = 2;
  static constexpr int kPanelTiles = 1;
  template <int Rows>
  static constexpr int stream_tiles() {
    return kPanelTiles;
  }

  struct U8 {
    std::uint8_t v[64];
  };
  struct I32 {
    std::int32_t v[16];
  };
  struct F32 {
    float v[16];
  };

  static U8 load(const std::uint8_t* p) {
    U8 r;
    std::memcpy(r.v, p, 64);
    return r;
  }
  static void store(std::uint8_t* p, U8 a) { std::memcpy(p, a.v, 64); }
  static U8 bit_or(U8 a, U8 b) {
    for (int i = 0; i < 64; ++i) a.v[i] = static_cast<std::uint8_t>(a.v[i] | b.v[i]);
    return a;
  }
  // Bits `mask` of each byte after a shift right by Shift (left where negative).
  template <int Shift>
  static U8 field(U8 a, int mask) {
    for (std::uint8_t& v : a.v) {
      const int shifted = Shift >= 0 ? v >> (Shift & 7) : v << (-Shift & 7);
      v = static_cast<std::uint8_t>(shifted & mask);
    }
    return a;
  }
  // Byte J of each column's four, as floats.
  template <int J>
  static F32 byte_to_float(const U8& a) {
    return map([&](int i) { return static_cast<float>(a.v[4 * i + J]); });
  }

  static F32 zero() { return set1(0); }
  static F32 set1(float a) {
    return map([=](int) { return a; });
  }
  static F32 load(const float* p) {
    F32 r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static F32 load_half(const std::uint16_t* p) {
    return map([=](int i) { return half_to_float(p[i]); });
  }
  static F32 load_bfloat16(const std::uint16_t* p) {
    return map([=](int i) { return bfloat16_to_float(p[i]); });
  }
  static F32 load_exponents(const std::uint8_t* p) {
    return map([=](int i) { return exponent_to_float(p[i]); });
  }
  static F32 load_bytes(const std::uint8_t* p) {
    return map([=](int i) { return static_cast<float>(p[i]); });
  }
  static F32 load(const float* p, std::int64_t count) {
    if (count >= 16) return load(p);
    return map([=](int i) { return i < count ? p[i] : 0.0f; });
  }
  static void store(float* p, const F32& a) { std::memcpy(p, a.v, sizeof a.v); }
  static void store(float* p, const F32& a, std::int64_t count) {
    for (int i = 0; i < 16 && i < count; ++i) p[i] = a.v[i];
  }
  static void store_half(std::uint16_t* p, const F32& a) {
    for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
  }
  static F32 add(const F32& a, const F32& b) {
    return map([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F32 sub(const F32& a, const F32& b) {
    return map([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F32 mul(const F32& a, const F32& b) {
    return map([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F32 fma(const F32& a, const F32& b, const F32& c) {
    return map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F32 fnma(const F32& a, const F32& b, const F32& c) {
    return map([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
  }
  static F32 div(const F32& a, const F32& b) {
    return map([&](int i) { return a.v[i] / b.v[i]; });
  }
  // The second where one is NaN.
  static F32 min(const F32& a, const F32& b) {
    return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F32 max(const F32& a, const F32& b) {
    return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  // 2^n for an integer from -126 to 127; 0 for -127 and infinity for 128.
  static F32 pow2(const F32& n) {
    return map([&](int i) { return bits_to_float(float_to_bits(n.v[i] + kExponent) << 23); });
  }
  static F32 if_negative(const F32& x, const F32& then, const F32& otherwise) {
    return map([&](int i) { return float_to_bits(x.v[i]) >> 31 != 0 ? then.v[i] : otherwise.v[i]; });
  }
  // Compared as integers, in whose order NaN is above infinity: a NaN is never lost.
  static float max_abs(const float* p, std::int64_t count) {
    std::uint32_t peak = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      const std::uint32_t magnitude = float_to_bits(p[k]) & 0x7fffffffu;
      peak = magnitude > peak ? magnitude : peak;
    }
    return bits_to_float(peak);
  }
  // 16 values times `factor`, rounded to nearest even, as int8; returns their sum in each lane.
  static I32 quantize(const float* p, std::int64_t count, const F32& factor, std::int8_t* out, I32 sum) {
    const F32 v = mul(load(p, count), factor);
    for (int i = 0; i < 16; ++i) {
      const std::int32_t code = static_cast<std::int32_t>(std::nearbyint(v.v[i]));
      out[i] = static_cast<std::int8_t>(code);
      sum.v[i] += code;
    }
    return sum;
  }
  static I32 zero_int() { return I32{}; }
  static std::int32_t total(const I32& a) {
    std::int32_t sum = 0;
    for (std::int32_t v : a.v) sum += v;
    return sum;
  }

  // The sum over k of code * activation for 16 columns, minus zero_point * sum of activations.
  struct AnyDot {
    I32 sum;
    void start(std::int32_t zero_point, std::int32_t activations) {
      for (std::int32_t& v : sum.v) v = -zero_point * activations;
    }
    template <int Index, int Run>
    void add(const U8& codes, const std::int8_t* four) {
      for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 4; ++j) sum.v[i] += codes.v[4 * i + j] * four[j];
      }
    }
    F32 value() const {
      return map([this](int i) { return static_cast<float>(sum.v[i]); });
    }
  };
  template <int Bits>
  using Dot = AnyDot;

 private:
  template <class F>
  static F32 map(F f) {
    F32 r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return r;
  }
};

}  // namespace
}  // namespace onnxpress
