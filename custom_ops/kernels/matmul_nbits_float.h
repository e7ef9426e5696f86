// MatMulNBits in float32: the weight is dequantized in registers or in a panel that stays in L1.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/matmul_nbits_codes.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kFloatK = 128;  // a panel of 32 float columns takes 16 KiB of L1, whose ways rows of A need too

template <class S, class Codes>
__attribute__((always_inline)) inline typename S::F32 without_zero_point(const typename S::F32& value,
                                                                         const typename S::F32& zero_point) {
  if constexpr (Codes::kHasZeroPoints) return S::sub(value, zero_point);
  return value;
}

// kFloatK rows of the weight as floats, for rank-1 updates.
template <class S, class Codes>
void dequantize(const NBitsWeight& w, std::int64_t tile, std::int64_t k, std::int64_t count, float* out) {
  constexpr int kTiles = S::kPanelTiles;
  for (int t = 0; t < kTiles; ++t) {
    const std::int64_t from = tile + t < w.tiles ? tile + t : tile;
    for (std::int64_t s = 0; s < count; s += kSpan) {
      const std::uint8_t* span = span_of(w, from, (k + s) / kSpan);
      // A span lies in one block, or is two blocks of 16.
      const std::int64_t block = (k + s) / w.block_size;
      const std::int64_t second = block + (w.block_size == kTile ? 1 : 0);
      const typename S::F32 scales[2] = {scale_of<S>(w, from, block), scale_of<S>(w, from, second)};
      const typename S::F32 zero_points[2] = {zero_point_of<S>(w, from, block), zero_point_of<S>(w, from, second)};
      unroll<kGroups>(ONNXPRESS_EACH(g) {
        constexpr int kHalf = decltype(g)::value / 4;
        typename S::F32 values[4];
        Codes::template floats<decltype(g)::value>(span, values);
        ONNXPRESS_UNROLLED for (int j = 0; j < 4; ++j) {
          const auto value = without_zero_point<S, Codes>(values[j], zero_points[kHalf]);
          S::store(out + ((s + 4 * g.value + j) * kTiles + t) * kTile, S::mul(value, scales[kHalf]));
        }
      });
    }
  }
}

template <class S, int Rows>
void multiply_floats(const NBitsProblem& p, const float* panel, std::int64_t tile, std::int64_t row, std::int64_t k,
                     std::int64_t count) {
  constexpr int kTiles = S::kPanelTiles;
  const NBitsWeight& w = *p.weight;
  typename S::F32 y[Rows][kTiles];
  load_sums<S>(p, tile, row, k, y);
  const float* a = p.A + row * w.K + k;
  for (std::int64_t i = 0; i < count; ++i, ++a, panel += kTiles * kTile) {
    typename S::F32 weights[kTiles];
    ONNXPRESS_UNROLLED for (int t = 0; t < kTiles; ++t) { weights[t] = S::load(panel + t * kTile); }
    ONNXPRESS_UNROLLED for (int r = 0; r < Rows; ++r) {
      const auto x = S::set1(a[r * w.K]);
      ONNXPRESS_UNROLLED for (int t = 0; t < kTiles; ++t) { y[r][t] = S::fma(x, weights[t], y[r][t]); }
    }
  }
  store_sums<S>(p, tile, row, y);
}

template <class S, class Codes>
void panel_float(const NBitsProblem& p, std::int64_t first_tile, std::int64_t begin, std::int64_t end) {
  alignas(64) float panel[kFloatK * S::kPanelTiles * kTile];
  const NBitsWeight& w = *p.weight;
  for (std::int64_t k = 0; k < w.K; k += kFloatK) {
    const std::int64_t count = w.K - k < kFloatK ? w.K - k : kFloatK;
    dequantize<S, Codes>(w, first_tile, k, count, panel);
    for_each_group_of_rows<S::kFloatRows>(begin, end, [&](auto rows_at_once, std::int64_t row) {
      multiply_floats<S, decltype(rows_at_once)::value>(p, panel, first_tile, row, k, count);
    });
  }
}

// One row in float32, straight from the packed weight: a panel would be written and read once each.
template <class S, class Codes>
void row_float(const NBitsProblem& p, std::int64_t first_tile, std::int64_t tiles) {
  const NBitsWeight& w = *p.weight;
  for (std::int64_t tile = first_tile; tile < first_tile + tiles; ++tile) {
    typename S::F32 y = bias_of<S>(p, tile * kTile);
    // Four sums, one for each byte of a group, keep as many chains of additions in flight. The groups of a span
    // are in one block, or in two of 16.
    typename S::F32 sums[4];
    const auto clear = [&]() __attribute__((always_inline)) {
      ONNXPRESS_UNROLLED for (int j = 0; j < 4; ++j) { sums[j] = S::zero(); }
    };
    const auto finish = [&](std::int64_t block) __attribute__((always_inline)) {
      const auto sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
      y = S::fma(sum, scale_of<S>(w, tile, block), y);
      clear();
    };
    clear();
    for (std::int64_t k = 0; k < w.K; k += kSpan) {
      alignas(64) float tail[kSpan] = {};
      const float* a = p.A + k;
      if (w.K - k < kSpan) {
        memcpy(tail, a, static_cast<std::size_t>(w.K - k) * sizeof(float));
        a = tail;
      }
      const std::uint8_t* span = span_of(w, tile, k / kSpan);
      prefetch_ahead(span, w.bits);
      const std::int64_t block = k / w.block_size;
      auto zero_point = zero_point_of<S>(w, tile, block);
      unroll<kGroups>(ONNXPRESS_EACH(g) {
        if (g.value == 4 && w.block_size == kTile) {
          finish(block);
          zero_point = zero_point_of<S>(w, tile, block + 1);
        }
        typename S::F32 values[4];
        Codes::template floats<decltype(g)::value>(span, values);
        ONNXPRESS_UNROLLED for (int j = 0; j < 4; ++j) {
          const auto value = without_zero_point<S, Codes>(values[j], zero_point);
          sums[j] = S::fma(value, S::set1(a[4 * g.value + j]), sums[j]);
        }
      });
      if (w.block_size == kTile) {
        finish(block + 1);
      } else if ((k + kSpan) % w.block_size == 0 || k + kSpan >= w.K) {
        finish(block);
      }
    }
    S::store(p.Y + tile * kTile, y, w.N - tile * kTile);
  }
}

template <class S, class Codes>
constexpr NBitsFloatProduct make_float_product() {
  return {S::kName, {}, S::kPanelTiles, row_float<S, Codes>, panel_float<S, Codes>};
}

}  // namespace
}  // namespace onnxpress
