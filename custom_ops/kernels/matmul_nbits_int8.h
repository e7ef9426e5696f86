// MatMulNBits with activations as int8: the dot products are exact int32 sums, one a block.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "kernels/matmul_nbits_tiles.h"

namespace onnxpress {
namespace {

template <class S>
void quantize_row(const NBitsProblem& p, const QuantizedRows& out, std::int64_t row) {
  const NBitsWeight& w = *p.weight;
  const float* values = p.A + row * w.K;
  for (std::int64_t block = 0; block < w.blocks; ++block) {
    const std::int64_t begin = block * w.block_size;
    const std::int64_t left = w.K - begin;
    std::int8_t* codes = out.codes + row * out.row_bytes + begin;
    const std::int64_t count = left < w.block_size ? left : w.block_size;
    const float peak = S::max_abs(values + begin, count);
    out.scales[block * out.stride + row] = peak * (1.0f / 127.0f);
    // A peak of NaN or infinity makes the scale, and so the result, the same; 127 / peak overflows for tiny ones.
    const float factor = peak <= FLT_MAX && peak > 127.0f / FLT_MAX ? 127.0f / peak : 0.0f;
    auto sum = S::zero_int();
    if (factor != 0.0f) {
      const auto factors = S::set1(factor);
      for (std::int64_t k = 0; k < w.block_size; k += kTile) {
        sum = S::quantize(values + begin + k, count - k, factors, codes + k, sum);
      }
    } else {
      memset(codes, 0, static_cast<std::size_t>(w.block_size));
      if (!(peak <= FLT_MAX)) codes[0] = 1;  // so that the result is not lost in a weight sum of zero codes
    }
    out.sums[block * out.stride + row] = factor != 0.0f ? S::total(sum) : codes[0];
  }
}

// A few rows times a few tiles: codes go from memory to the dot products without a stop. Unpacking them anew for every
// group of rows costs a shift and a mask for some six dot products; a panel of unpacked codes, four times their size
// (or twice), was slower at every number of rows.
template <class S, int Bits, int Rows, int Tiles>
void stream_tiles(const NBitsProblem& p, const QuantizedRows& a, std::int64_t row, std::int64_t tile, bool last) {
  using Dot = typename S::template Dot<Bits>;
  const NBitsWeight& w = *p.weight;
  const bool centred = symmetric(w);
  const std::int32_t middle = centred ? 1 << (Bits - 1) : 0;
  typename S::F32 y[Rows][Tiles];
  load_sums<S>(p, tile, row, 0, y);

  const std::uint8_t* codes[Tiles];
  ONNXPRESS_UNROLLED for (int t = 0; t < Tiles; ++t) { codes[t] = span_of(w, tile + t, 0); }
  // What the same tiles of the next group will read: too many short streams for the CPU to guess. After the last group
  // another thread may go on, so nothing new is fetched.
  const std::int64_t ahead = last ? 0 : Tiles * (w.padded_k / kSpan) * kLine * Bits;
  const std::int8_t* x = a.codes + row * a.row_bytes;
  Dot dot[Rows][Tiles];
  const auto start = [&](std::int64_t block) __attribute__((always_inline)) {
    const std::int32_t* sum_a = a.sums + block * a.stride + row;
    ONNXPRESS_UNROLLED for (int i = 0; i < Rows; ++i) {
      ONNXPRESS_UNROLLED for (int t = 0; t < Tiles; ++t) { dot[i][t].start(middle, sum_a[i]); }
    }
  };
  const auto finish = [&](std::int64_t block) __attribute__((always_inline)) {
    const float* scale_a = a.scales + block * a.stride + row;
    const std::int32_t* sum_a = a.sums + block * a.stride + row;
    ONNXPRESS_UNROLLED for (int t = 0; t < Tiles; ++t) {
      const auto scale = scale_of<S>(w, tile + t, block);
      ONNXPRESS_UNROLLED for (int i = 0; i < Rows; ++i) {
        const auto factor = S::mul(scale, S::set1(scale_a[i]));
        y[i][t] = S::fma(dot[i][t].value(), factor, y[i][t]);
      }
      if (!centred) {
        const auto offset = S::mul(scale, zero_point_of<S>(w, tile + t, block));
        ONNXPRESS_UNROLLED for (int i = 0; i < Rows; ++i) {
          const auto sum = S::set1(scale_a[i] * static_cast<float>(sum_a[i]));
          y[i][t] = S::fnma(offset, sum, y[i][t]);
        }
      }
    }
  };
  const auto add = [&](auto g, auto run) __attribute__((always_inline)) {
    constexpr int G = decltype(g)::value, Run = decltype(run)::value;
    ONNXPRESS_UNROLLED for (int t = 0; t < Tiles; ++t) {
      const auto group = load_group<S, Bits, G>(codes[t]);
      ONNXPRESS_UNROLLED for (int i = 0; i < Rows; ++i) {
        dot[i][t].template add<G % Run, Run>(group, x + i * a.row_bytes + 4 * G);
      }
    }
  };
  const auto next = [&]() __attribute__((always_inline)) {
    ONNXPRESS_UNROLLED for (int t = 0; t < Tiles; ++t) {
      ONNXPRESS_UNROLLED for (int line = 0; line < Bits; ++line) { prefetch_to_l2(codes[t] + ahead + kLine * line); }
      codes[t] += kLine * Bits;
    }
    x += kSpan;
  };
  if (w.block_size == kTile) {
    for (std::int64_t block = 0; block < w.blocks; block += 2) {
      start(block);
      unroll<4>(ONNXPRESS_EACH(g) { add(g, Index<4>{}); });
      finish(block);
      start(block + 1);
      unroll<4>(ONNXPRESS_EACH(g) { add(Index<g.value + 4>{}, Index<4>{}); });
      finish(block + 1);
      next();
    }
  } else {
    for (std::int64_t block = 0; block < w.blocks; ++block) {
      start(block);
      for (std::int64_t span = 0; span < w.block_size / kSpan; ++span) {
        unroll<kGroups>(ONNXPRESS_EACH(g) { add(g, Index<kGroups>{}); });
        next();
      }
      finish(block);
    }
  }
  store_sums<S>(p, tile, row, y);
}

// Rows [begin, end) in groups; the tiles stay in L2 from one group to the next. Where the tiles are no whole groups,
// the last group begins within the one before and makes the same sums again: kernels for fewer tiles take long to
// compile.
template <class S, int Bits>
void stream_int8(const NBitsProblem& p, const QuantizedRows& rows, std::int64_t first_tile, std::int64_t tiles,
                 std::int64_t begin, std::int64_t rows_end) {
  const std::int64_t end = first_tile + tiles;
  for_each_group_of_rows<S::kRows>(
      begin, rows_end, [&](auto rows_at_once, std::int64_t row) __attribute__((always_inline)) {
        constexpr int kRows = decltype(rows_at_once)::value;
        constexpr int kTiles = S::template stream_tiles<kRows>();
        if (tiles < kTiles) {
          for (int i = 0; i < kRows; ++i) {
            for (std::int64_t tile = first_tile; tile < end; ++tile)
              stream_tiles<S, Bits, 1, 1>(p, rows, row + i, tile, true);
          }
          return;
        }
        for (std::int64_t at = first_tile; at < end; at += kTiles) {
          const std::int64_t tile = at + kTiles <= end ? at : end - kTiles;
          stream_tiles<S, Bits, kRows, kTiles>(p, rows, row, tile, tile + 2 * kTiles > end);
        }
      });
}

}  // namespace
}  // namespace onnxpress
