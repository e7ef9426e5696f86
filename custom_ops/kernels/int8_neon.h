// What matmul_int8 and encoder_layer need beyond simd_neon.h; int8_scalar.h says what each function means.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/int8_dots.h"
#include "kernels/matmul_int8_kernels.h"
#include "kernels/simd_neon.h"

namespace onnxpress {
namespace {

struct Int8Neon : Neon {
  // ONNX Runtime's take fewer instructions: see custom_ops/README.md.
  static constexpr Int8Dots kInt8Dots = Int8Dots::kUnproven;
  // 32 registers: 5 rows x 4 of sums, 16 k of each row and 4 of weights make 29.
  static constexpr int kInt8Rows = 5;

  template <int Rows>
  static constexpr int int8_tiles() {
    return Rows == 1 ? 2 : 1;
  }

  using Neon::load;
  using Neon::set1;
  static I32 set1(std::int32_t a) {
    return map<I32>([=](int) { return vdupq_n_s32(a); });
  }
  static I32 load(const std::int32_t* p) {
    return map<I32>([=](int i) { return vld1q_s32(p + 4 * i); });
  }
  using Neon::add;
  using Neon::mul;
  using Neon::sub;
  static I32 add(const I32& a, const I32& b) {
    return map<I32>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
  }
  static I32 sub(const I32& a, const I32& b) {
    return map<I32>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
  }
  static I32 mul(const I32& a, const I32& b) {
    return map<I32>([&](int i) { return vmulq_s32(a.v[i], b.v[i]); });
  }
  static F32 to_float(const I32& a) {
    return map<F32>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
  }

  struct Weights {
    int8x16_t v[4];
  };
  using Activations = uint8x16_t;
  static Weights weights(const std::int8_t* line) {
    return map<Weights>([=](int i) { return vld1q_s8(line + 16 * i); });
  }
  static Activations activations(const std::uint8_t* four) {
    std::uint32_t x;
    std::memcpy(&x, four, sizeof x);
    return vreinterpretq_u8_u32(vdupq_n_u32(x));
  }
  // Both sides are signed: the activations less 128, and the weights times 128. DotBlock does that once for many.
  static I32 dot(const I32& sum, Activations x, const Weights& w) {
    const int8x16_t less = less_128(x), half = vdupq_n_s8(64);
    return map<I32>(
        [&](int i) { return vdotq_s32(vdotq_s32(vdotq_s32(sum.v[i], w.v[i], less), w.v[i], half), w.v[i], half); });
  }
  static int8x16_t less_128(uint8x16_t x) { return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(128))); }

  static void store_codes(std::uint8_t* p, const F32& a, const CodeFormat& format, std::int64_t count) {
    const F32 low = set1(static_cast<float>(-format.zero_point));
    const F32 high = set1(static_cast<float>(255 - format.zero_point));
    const F32 v = min(max(div(a, set1(format.scale)), low), high);
    const int32x4_t zero_point = vdupq_n_s32(format.zero_point);
    const I32 codes = map<I32>([&](int i) { return vaddq_s32(vcvtnq_s32_f32(v.v[i]), zero_point); });
    const auto two = [&](int i) {
      return vreinterpretq_u16_s16(vcombine_s16(vmovn_s32(codes.v[i]), vmovn_s32(codes.v[i + 1])));
    };
    const uint8x16_t bytes = vcombine_u8(vmovn_u16(two(0)), vmovn_u16(two(2)));
    store_bytes(p, veorq_u8(bytes, vdupq_n_u8(format.flip)), count);
  }
  static void store_bytes(std::uint8_t* p, const F32& a) {
    const auto two = [&](int i) {
      return vcombine_u16(vqmovn_u32(vcvtnq_u32_f32(a.v[i])), vqmovn_u32(vcvtnq_u32_f32(a.v[i + 1])));
    };
    vst1q_u8(p, vcombine_u8(vqmovn_u16(two(0)), vqmovn_u16(two(2))));
  }
  static I32 add_line(const I32& sum, const std::uint8_t* line) {
    return map<I32>([&](int i) {
      const uint32x4_t before = vreinterpretq_u32_s32(sum.v[i]);
      return vreinterpretq_s32_u32(vdotq_u32(before, vld1q_u8(line + 16 * i), vdupq_n_u8(1)));
    });
  }
  static void copy_line(const std::uint8_t* from, std::int64_t count, std::uint8_t flip, std::uint8_t* line) {
    if (count >= 64) {
      for (int i = 0; i < 64; i += 16) vst1q_u8(line + i, veorq_u8(vld1q_u8(from + i), vdupq_n_u8(flip)));
    } else {
      for (int i = 0; i < 64; ++i) line[i] = static_cast<std::uint8_t>(i < count ? from[i] ^ flip : 0);
    }
  }
  static void extend(const float* p, std::int64_t count, float& low, float& high) {
    F32 least = set1(low), most = set1(high);
    for (std::int64_t i = 0; i < count; i += 16) {
      const F32 v = load(p + i, count - i);  // zeros behind the last: they are in the range
      least = min(v, least);
      most = max(v, most);
    }
    for (int i = 0; i < 4; ++i) {
      const float lowest = vminvq_f32(least.v[i]), highest = vmaxvq_f32(most.v[i]);
      low = lowest < low ? lowest : low;
      high = highest > high ? highest : high;
    }
  }

 protected:
  static void store_bytes(std::uint8_t* p, uint8x16_t bytes, std::int64_t count) {
    if (count >= 16) return vst1q_u8(p, bytes);
    std::uint8_t part[16];
    vst1q_u8(part, bytes);
    if (count > 0) std::memcpy(p, part, static_cast<std::size_t>(count));
  }
};

// 16 k of each row in a register, of which an instruction takes four by their place.
template <>
struct DotBlock<Int8Neon> {
  using S = Int8Neon;

  template <int Rows, int Tiles>
  __attribute__((always_inline)) static void add(const std::uint8_t* x, std::int64_t row_bytes,
                                                 const std::int8_t* codes, std::int64_t padded_k,
                                                 const std::int32_t* of_columns, S::I32 (&sums)[Rows][Tiles]) {
    const std::int64_t tile_bytes = padded_k * kTile;
    // What the signed activations are short of.
    unroll<Tiles>(ONNXPRESS_EACH(t) {
      S::I32 start = of_columns != nullptr ? S::load(of_columns + t.value * kTile)
                                           : sums_of_columns(codes + t.value * tile_bytes, padded_k);
      for (int32x4_t& v : start.v) v = vshlq_n_s32(v, 7);
      unroll<Rows>(ONNXPRESS_EACH(r) { sums[r.value][t.value] = start; });
    });
    for (std::int64_t k = 0; k < padded_k; k += 16) {
      int8x16_t four[Rows];
      unroll<Rows>(ONNXPRESS_EACH(r) { four[r.value] = S::less_128(vld1q_u8(x + r.value * row_bytes + k)); });
      unroll<4>(ONNXPRESS_EACH(g) {
        unroll<Tiles>(ONNXPRESS_EACH(t) {
          const S::Weights line = S::weights(codes + t.value * tile_bytes + g.value * kLine);
          unroll<Rows>(ONNXPRESS_EACH(r) {
            unroll<4>(ONNXPRESS_EACH(i) {
              int32x4_t& sum = sums[r.value][t.value].v[i.value];
              sum = vdotq_laneq_s32(sum, line.v[i.value], four[r.value], g.value);
            });
          });
        });
      });
      codes += 4 * kLine;
    }
  }

 private:
  static S::I32 sums_of_columns(const std::int8_t* codes, std::int64_t padded_k) {
    S::I32 sum = S::zero_int();
    for (std::int64_t k = 0; k < padded_k; k += 4, codes += kLine) {
      for (int i = 0; i < 4; ++i) sum.v[i] = vdotq_s32(sum.v[i], vld1q_s8(codes + 16 * i), vdupq_n_s8(1));
    }
    return sum;
  }
};

}  // namespace
}  // namespace onnxpress
