// Arm with products of matrices of bytes (i8mm); int8_scalar.h says what each function means.
#pragma once

#include <cstdint>

#include "kernels/int8_neon.h"

namespace onnxpress {
namespace {

struct Int8I8mm : Int8Neon {
  static constexpr const char* kName = "i8mm";
  // 32 registers: 3 pairs of rows x 8 of sums, 8 k of each pair and 2 of weights make 29.
  static constexpr int kInt8Rows = 6;

  static I32 dot(const I32& sum, Activations x, const Weights& w) {
    return map<I32>([&](int i) { return vusdotq_s32(sum.v[i], x, w.v[i]); });
  }
};

// An instruction multiplies 8 k of two rows with 8 k of two columns. Two lines of 4 k are put together to columns of 8.
template <>
struct DotBlock<Int8I8mm> {
  using S = Int8I8mm;

  template <int Rows, int Tiles>
  __attribute__((always_inline)) static void add(const std::uint8_t* x, std::int64_t row_bytes,
                                                 const std::int8_t* codes, std::int64_t padded_k, const std::int32_t*,
                                                 S::I32 (&sums)[Rows][Tiles]) {
    if constexpr (Rows == 1) {
      add_row<Tiles>(x, codes, padded_k, sums[0]);
    } else {
      add_pairs<Rows, Tiles>(x, row_bytes, codes, padded_k, sums);
    }
  }

 private:
  static const std::int8_t* codes_of(const std::uint8_t* x) { return reinterpret_cast<const std::int8_t*>(x); }

  template <int Tiles>
  __attribute__((always_inline)) static void add_row(const std::uint8_t* x, const std::int8_t* codes,
                                                     std::int64_t padded_k, S::I32 (&sums)[Tiles]) {
    const std::int64_t tile_bytes = padded_k * kTile;
    unroll<Tiles>(ONNXPRESS_EACH(t) { sums[t.value] = S::zero_int(); });
    for (std::int64_t k = 0; k < padded_k; k += 16, codes += 4 * kLine) {
      const uint8x16_t four = vld1q_u8(x + k);
      unroll<4>(ONNXPRESS_EACH(g) {
        unroll<Tiles>(ONNXPRESS_EACH(t) {
          const S::Weights line = S::weights(codes + t.value * tile_bytes + g.value * kLine);
          unroll<4>(ONNXPRESS_EACH(i) {
            int32x4_t& sum = sums[t.value].v[i.value];
            // With the activations by their place there is only signed times unsigned.
            sum = vsudotq_laneq_s32(sum, line.v[i.value], four, g.value);
          });
        });
      });
    }
  }

  // The last of an odd number of rows is a pair by itself.
  template <int Rows, int Tiles>
  __attribute__((always_inline)) static void add_pairs(const std::uint8_t* x, std::int64_t row_bytes,
                                                       const std::int8_t* codes, std::int64_t padded_k,
                                                       S::I32 (&sums)[Rows][Tiles]) {
    constexpr int kPairs = (Rows + 1) / 2;
    const std::int64_t tile_bytes = padded_k * kTile;
    int32x4_t pairs[kPairs][Tiles][8];  // of two rows x two columns
    unroll<kPairs>(ONNXPRESS_EACH(p) {
      unroll<Tiles>(
          ONNXPRESS_EACH(t) { unroll<8>(ONNXPRESS_EACH(c) { pairs[p.value][t.value][c.value] = vdupq_n_s32(0); }); });
    });
    for (std::int64_t k = 0; k < padded_k; k += 8, codes += 2 * kLine) {
      uint8x16_t rows[kPairs];
      unroll<kPairs>(ONNXPRESS_EACH(p) {
        constexpr int kSecond = 2 * p.value + 1 < Rows ? 2 * p.value + 1 : 2 * p.value;
        rows[p.value] = vreinterpretq_u8_s8(
            S::pair(codes_of(x + 2 * p.value * row_bytes + k), codes_of(x + kSecond * row_bytes + k)));
      });
      unroll<Tiles>(ONNXPRESS_EACH(t) {
        const std::int8_t* line = codes + t.value * tile_bytes;
        unroll<4>(ONNXPRESS_EACH(i) {
          const int32x4_t low = vreinterpretq_s32_s8(vld1q_s8(line + 16 * i.value));
          const int32x4_t high = vreinterpretq_s32_s8(vld1q_s8(line + kLine + 16 * i.value));
          const int8x16_t left = vreinterpretq_s8_s32(vzip1q_s32(low, high));
          const int8x16_t right = vreinterpretq_s8_s32(vzip2q_s32(low, high));
          unroll<kPairs>(ONNXPRESS_EACH(p) {
            auto& sum = pairs[p.value][t.value];
            sum[2 * i.value] = vusmmlaq_s32(sum[2 * i.value], rows[p.value], left);
            sum[2 * i.value + 1] = vusmmlaq_s32(sum[2 * i.value + 1], rows[p.value], right);
          });
        });
      });
    }
    unroll<kPairs>(ONNXPRESS_EACH(p) {
      unroll<Tiles>(ONNXPRESS_EACH(t) {
        unroll<4>(ONNXPRESS_EACH(i) {
          const int64x2_t a = vreinterpretq_s64_s32(pairs[p.value][t.value][2 * i.value]);
          const int64x2_t b = vreinterpretq_s64_s32(pairs[p.value][t.value][2 * i.value + 1]);
          sums[2 * p.value][t.value].v[i.value] = vreinterpretq_s32_s64(vuzp1q_s64(a, b));
          if constexpr (2 * p.value + 1 < Rows) {
            sums[2 * p.value + 1][t.value].v[i.value] = vreinterpretq_s32_s64(vuzp2q_s64(a, b));
          }
        });
      });
    });
  }
};

}  // namespace
}  // namespace onnxpress
