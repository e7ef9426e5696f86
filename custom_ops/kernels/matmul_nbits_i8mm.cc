// MatMulNBits with activations as int8 by products of matrices of bytes: 8 k of two columns with 8 k of two rows an
// instruction.
//
// A tile of the packed weight is unpacked once, a segment of K at a time, into columns of 8 k, and meets all rows from
// the L1 cache. Codes stay unsigned and activations signed.
#include <cstdint>

#include "kernels/matmul_nbits_int8.h"
#include "kernels/matmul_nbits_kernels.h"
#include "kernels/simd_neon.h"

namespace onnxpress {
namespace {

using S = Neon;

constexpr std::int64_t kPanelK = 1024;  // 16 KiB of L1
constexpr int kRows = 6;                // 3 pairs x 8 registers of sums, 3 of rows and 2 of codes make 29
constexpr std::int64_t kMinRows = 6;    // fewer do not pay for the panel

template <int Bits>
void unpack(const NBitsWeight& w, std::int64_t tile, std::int64_t k, std::int64_t count, std::uint8_t* panel) {
  for (std::int64_t at = k; at < k + count; at += kSpan, panel += kLine * kGroups) {
    const std::uint8_t* span = span_of(w, tile, at / kSpan);
    unroll<kGroups / 2>(ONNXPRESS_EACH(g) {
      const S::U8 low = load_group<S, Bits, 2 * g.value>(span), high = load_group<S, Bits, 2 * g.value + 1>(span);
      unroll<4>(ONNXPRESS_EACH(i) {
        const uint32x4_t a = vreinterpretq_u32_u8(low.v[i.value]), b = vreinterpretq_u32_u8(high.v[i.value]);
        std::uint8_t* to = panel + 2 * kLine * g.value + 32 * i.value;
        vst1q_u8(to, vreinterpretq_u8_u32(vzip1q_u32(a, b)));
        vst1q_u8(to + 16, vreinterpretq_u8_u32(vzip2q_u32(a, b)));
      });
    });
  }
}

// Rows times one tile over the blocks of a panel; the last of an odd number of rows is a pair by itself.
template <int Rows>
void multiply_panel(const NBitsProblem& p, const QuantizedRows& a, const std::uint8_t* panel, std::int64_t tile,
                    std::int64_t row, std::int64_t k, std::int64_t count) {
  constexpr int kPairs = (Rows + 1) / 2;
  const NBitsWeight& w = *p.weight;
  const bool centred = symmetric(w);
  const std::int32_t middle = centred ? 1 << (w.bits - 1) : 0;
  S::F32 y[Rows][1];
  load_sums<S>(p, tile, row, k, y);
  const std::int8_t* codes = a.codes + row * a.row_bytes + k;
  const std::int64_t first = k / w.block_size, end = first + count / w.block_size;
  for (std::int64_t block = first; block < end; ++block) {
    const std::int32_t* sum_a = a.sums + block * a.stride + row;
    const float* scale_a = a.scales + block * a.stride + row;
    int32x4_t sums[kPairs][8];  // of two columns x two rows
    unroll<kPairs>(ONNXPRESS_EACH(i) {
      constexpr int kSecond = 2 * i.value + 1 < Rows ? 2 * i.value + 1 : 2 * i.value;
      const int32x2_t start = {-middle * sum_a[2 * i.value], -middle * sum_a[kSecond]};
      unroll<8>(ONNXPRESS_EACH(c) { sums[i.value][c.value] = vcombine_s32(start, start); });
    });
    for (std::int64_t i = 0; i < w.block_size; i += 8, codes += 8, panel += 2 * kLine) {
      int8x16_t rows[kPairs];
      unroll<kPairs>(ONNXPRESS_EACH(r) {
        constexpr int kSecond = 2 * r.value + 1 < Rows ? 2 * r.value + 1 : 2 * r.value;
        rows[r.value] = S::pair(codes + 2 * r.value * a.row_bytes, codes + kSecond * a.row_bytes);
      });
      unroll<8>(ONNXPRESS_EACH(c) {
        const uint8x16_t columns = vld1q_u8(panel + 16 * c.value);
        unroll<kPairs>(ONNXPRESS_EACH(r) {
          sums[r.value][c.value] = vusmmlaq_s32(sums[r.value][c.value], columns, rows[r.value]);
        });
      });
    }
    const auto scale = scale_of<S>(w, tile, block);
    unroll<Rows>(ONNXPRESS_EACH(r) {
      const auto factor = S::mul(scale, S::set1(scale_a[r.value]));
      S::F32 sum;
      unroll<4>(ONNXPRESS_EACH(i) {
        const int32x4_t low = sums[r.value / 2][2 * i.value], high = sums[r.value / 2][2 * i.value + 1];
        sum.v[i.value] = vcvtq_f32_s32(r.value % 2 == 0 ? vuzp1q_s32(low, high) : vuzp2q_s32(low, high));
      });
      y[r.value][0] = S::fma(sum, factor, y[r.value][0]);
    });
    if (!centred) {
      const auto offset = S::mul(scale, zero_point_of<S>(w, tile, block));
      unroll<Rows>(ONNXPRESS_EACH(r) {
        const auto sum = S::set1(scale_a[r.value] * static_cast<float>(sum_a[r.value]));
        y[r.value][0] = S::fnma(offset, sum, y[r.value][0]);
      });
    }
  }
  store_sums<S>(p, tile, row, y);
}

// Rows [begin, end) times `tiles` tiles, for blocks in whole spans.
template <int Bits>
void multiply(const NBitsProblem& p, const QuantizedRows& a, std::int64_t first_tile, std::int64_t tiles,
              std::int64_t begin, std::int64_t end) {
  const NBitsWeight& w = *p.weight;
  const std::int64_t most = kPanelK / w.block_size * w.block_size;  // whole blocks
  alignas(64) std::uint8_t panel[kPanelK * kTile];
  for (std::int64_t tile = first_tile; tile < first_tile + tiles; ++tile) {
    for (std::int64_t k = 0; k < w.padded_k; k += most) {
      const std::int64_t count = w.padded_k - k < most ? w.padded_k - k : most;
      unpack<Bits>(w, tile, k, count, panel);
      for_each_group_of_rows<kRows>(begin, end, [&](auto rows, std::int64_t row) {
        multiply_panel<decltype(rows)::value>(p, a, panel, tile, row, k, count);
      });
    }
  }
}

// As many sums as the kernel keeps.
std::int64_t spin(const std::uint8_t* lines, std::int64_t rounds, float* sink) {
  int32x4_t sums[kRows * 4];
  unroll<kRows * 4>(ONNXPRESS_EACH(i) { sums[i.value] = vdupq_n_s32(0); });
  for (std::int64_t round = 0; round < rounds; ++round) {
    asm volatile("" ::: "memory");  // or what every round repeats would be computed once
    unroll<8>(ONNXPRESS_EACH(c) {
      const uint8x16_t columns = vld1q_u8(lines + 16 * c.value);
      unroll<kRows / 2>(ONNXPRESS_EACH(r) {
        int32x4_t& sum = sums[8 * r.value + c.value];
        sum = vusmmlaq_s32(sum, columns, vreinterpretq_s8_u8(vld1q_u8(lines + 128 + 16 * r.value)));
      });
    });
  }
  int32x4_t sum = vdupq_n_s32(0);  // a sum that nobody reads would not be computed
  unroll<kRows * 4>(ONNXPRESS_EACH(i) { sum = vaddq_s32(sum, sums[i.value]); });
  vst1q_f32(sink, vcvtq_f32_s32(sum));
  return rounds * 8 * (kRows / 2) * 32;
}

}  // namespace

extern constexpr NBitsInt8Kernels nbits_int8_i8mm{
    "i8mm",
    {kMinRows, kSpan},
    1,
    quantize_row<S>,
    {nullptr, nullptr, multiply<2>, multiply<3>, multiply<4>, multiply<5>, multiply<6>, multiply<7>, multiply<8>},
    spin};

}  // namespace onnxpress
