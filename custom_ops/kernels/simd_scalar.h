// Sixteen columns in plain arrays of integers and in vectors of the compiler's: runs anywhere, on what vectors there
// are.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/minifloat.h"

namespace onnxpress {
namespace {

// Few operations on vectors of four compile many times as fast as sixteen on single lanes, which end up the same.
typedef float FourFloats __attribute__((vector_size(16)));
typedef std::int32_t FourInts __attribute__((vector_size(16)));

struct Scalar {
  static constexpr const char* kName = "scalar";
  static constexpr int kRows = 2;
  static constexpr int kFloatRows = kRows;
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
    FourFloats v[4];
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
    return by_four([&](int q) {
      FourInts columns;  // bytes from the lowest bits up
      std::memcpy(&columns, a.v + 16 * q, sizeof columns);
      return __builtin_convertvector(columns >> 8 * J & 255, FourFloats);
    });
  }

  static float lane(const F32& a, int i) { return a.v[i / 4][i % 4]; }

  static F32 zero() { return set1(0); }
  static F32 set1(float a) {
    return by_four([=](int) { return FourFloats{a, a, a, a}; });
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
    for (int i = 0; i < 16 && i < count; ++i) p[i] = lane(a, i);
  }
  static void store_half(std::uint16_t* p, const F32& a) {
    for (int i = 0; i < 16; ++i) p[i] = float_to_half(lane(a, i));
  }
  static F32 add(const F32& a, const F32& b) {
    return by_four([&](int q) { return a.v[q] + b.v[q]; });
  }
  static F32 sub(const F32& a, const F32& b) {
    return by_four([&](int q) { return a.v[q] - b.v[q]; });
  }
  static F32 mul(const F32& a, const F32& b) {
    return by_four([&](int q) { return a.v[q] * b.v[q]; });
  }
  static F32 fma(const F32& a, const F32& b, const F32& c) {
    return by_four([&](int q) { return a.v[q] * b.v[q] + c.v[q]; });
  }
  static F32 fnma(const F32& a, const F32& b, const F32& c) {
    return by_four([&](int q) { return c.v[q] - a.v[q] * b.v[q]; });
  }
  static F32 div(const F32& a, const F32& b) {
    return by_four([&](int q) { return a.v[q] / b.v[q]; });
  }
  // The second where one is NaN.
  static F32 min(const F32& a, const F32& b) {
    return by_four([&](int q) { return a.v[q] < b.v[q] ? a.v[q] : b.v[q]; });
  }
  static F32 max(const F32& a, const F32& b) {
    return by_four([&](int q) { return a.v[q] > b.v[q] ? a.v[q] : b.v[q]; });
  }
  // 2^n for an integer from -126 to 127; 0 for -127 and infinity for 128.
  static F32 pow2(const F32& n) {
    return map([&](int i) { return bits_to_float(float_to_bits(lane(n, i) + kExponent) << 23); });
  }
  // a * 2^n for an integer n from -126 on.
  static F32 scaled(const F32& a, const F32& n) { return mul(a, pow2(n)); }
  static F32 if_negative(const F32& x, const F32& then, const F32& otherwise) {
    return map([&](int i) { return float_to_bits(lane(x, i)) >> 31 != 0 ? lane(then, i) : lane(otherwise, i); });
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
      const std::int32_t code = static_cast<std::int32_t>(std::nearbyint(lane(v, i)));
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
      add_products(codes, four, sum);
    }
    F32 value() const {
      return map([this](int i) { return static_cast<float>(sum.v[i]); });
    }
  };
  template <int Bits>
  using Dot = AnyDot;

  // A call costs little beside 64 products; compilers would take minutes for all places that it is called from.
  __attribute__((noinline)) static void add_products(const U8& codes, const std::int8_t* four, I32& sum) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 4; ++j) sum.v[i] += codes.v[4 * i + j] * four[j];
    }
  }

 protected:
  template <class F>
  static F32 map(F f) {
    float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = f(i);
    return load(lanes);
  }
  template <class F>
  static F32 by_four(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
};

}  // namespace
}  // namespace onnxpress
