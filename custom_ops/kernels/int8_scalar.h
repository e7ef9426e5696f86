// What matmul_int8 needs beyond simd_scalar.h: what a vector type must offer to it.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/matmul_int8_kernels.h"
#include "kernels/simd_scalar.h"

namespace onnxpress {
namespace {

struct Int8Scalar : Scalar {
  static constexpr Int8Dots kInt8Dots = Int8Dots::kPortable;
  static constexpr int kInt8Rows = kRows;

  template <int Rows>
  static constexpr int int8_tiles() {
    return 1;
  }

  static I32 set1(std::int32_t a) {
    return map([=](int) { return a; });
  }
  static I32 load(const std::int32_t* p) {
    return map([=](int i) { return p[i]; });
  }
  using Scalar::load;
  using Scalar::mul;
  using Scalar::set1;
  using Scalar::sub;
  // All integers are modulo 2^32.
  static I32 sub(const I32& a, const I32& b) {
    return map([&](int i) { return wrap(unsigned_of(a.v[i]) - unsigned_of(b.v[i])); });
  }
  static I32 mul(const I32& a, const I32& b) {
    return map([&](int i) { return wrap(unsigned_of(a.v[i]) * unsigned_of(b.v[i])); });
  }
  static F32 to_float(const I32& a) {
    return Scalar::map([&](int i) { return static_cast<float>(a.v[i]); });
  }

  // A line of the weight, 4 activations for all columns, and the exact sum of their products.
  struct Weights {
    std::int8_t v[64];
  };
  using Activations = const std::uint8_t*;
  static Weights weights(const std::int8_t* line) {
    Weights w;
    std::memcpy(w.v, line, sizeof w.v);
    return w;
  }
  static Activations activations(const std::uint8_t* four) { return four; }
  static I32 dot(const I32& sum, Activations four, const Weights& w) {
    return map([&](int i) {
      std::int32_t products = 0;
      for (int j = 0; j < 4; ++j) products += four[j] * w.v[4 * i + j];
      return wrap(unsigned_of(sum.v[i]) + unsigned_of(products));
    });
  }

  // `count` of 16 values. A NaN becomes the lowest code.
  static void store_codes(std::uint8_t* p, const F32& a, const CodeFormat& format, std::int64_t count) {
    const float low = static_cast<float>(-format.zero_point), high = static_cast<float>(255 - format.zero_point);
    for (int i = 0; i < 16 && i < count; ++i) {
      float v = lane(a, i) / format.scale;
      v = v > low ? v : low;
      v = v < high ? v : high;
      const std::int32_t code = static_cast<std::int32_t>(std::nearbyint(v)) + format.zero_point;
      p[i] = static_cast<std::uint8_t>(code ^ format.flip);
    }
  }
  // 16 values from 0 to 255 to the nearest integers; a NaN becomes any.
  static void store_bytes(std::uint8_t* p, const F32& a) {
    for (int i = 0; i < 16; ++i) {
      const float v = lane(a, i);
      p[i] = v > 0.0f ? static_cast<std::uint8_t>(std::nearbyint(v < 255.0f ? v : 255.0f)) : std::uint8_t{0};
    }
  }
  // Adds the bytes of a line, some to each lane.
  static I32 add_line(const I32& sum, const std::uint8_t* line) {
    return map([&](int i) {
      const std::int32_t four = line[4 * i] + line[4 * i + 1] + line[4 * i + 2] + line[4 * i + 3];
      return wrap(unsigned_of(sum.v[i]) + unsigned_of(four));
    });
  }
  // `count` codes as a line, zeros behind them.
  static void copy_line(const std::uint8_t* from, std::int64_t count, std::uint8_t flip, std::uint8_t* line) {
    for (int i = 0; i < 64; ++i) line[i] = static_cast<std::uint8_t>(i < count ? from[i] ^ flip : 0);
  }
  // A NaN among the values is passed over.
  static void extend(const float* p, std::int64_t count, float& low, float& high) {
    for (std::int64_t i = 0; i < count; ++i) {
      low = p[i] < low ? p[i] : low;
      high = p[i] > high ? p[i] : high;
    }
  }

 private:
  static std::uint32_t unsigned_of(std::int32_t v) { return static_cast<std::uint32_t>(v); }
  static std::int32_t wrap(std::uint32_t v) { return static_cast<std::int32_t>(v); }
  template <class F>
  static I32 map(F f) {
    I32 r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return r;
  }
};

}  // namespace
}  // namespace onnxpress
