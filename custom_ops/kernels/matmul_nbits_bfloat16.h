// MatMulNBits with activations as bfloat16. They meet whole numbers, code - 2^(bits - 1), or small floating-point ones,
// which bfloat16 holds exactly; the scale multiplies the float32 sum of a block. By how much a zero point differs from
// the middle comes in through the sum of the block's activations.
#pragma once

#include <cstdint>

#include "kernels/matmul_nbits_codes.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kPairsK = 256;  // a panel of 32 columns takes 16 KiB of L1, and no block is longer

template <class S>
void round_row(const NBitsProblem& p, const BFloat16Rows& out, std::int64_t row) {
  const NBitsWeight& w = *p.weight;
  const float* values = p.A + row * w.K;
  std::uint16_t* rounded = out.values + row * out.row_values;
  for (std::int64_t block = 0; block < w.blocks; ++block) {
    auto sum = S::zero();
    for (std::int64_t k = block * w.block_size; k < (block + 1) * w.block_size; k += kTile) {
      sum = S::add(sum, S::round(values + k, w.K - k, rounded + k));
    }
    out.sums[block * out.stride + row] = S::total(sum);
  }
}

// What the sum of a block's activations is multiplied by, to be taken away.
template <class S>
inline typename S::F32 offset_of(const NBitsWeight& w, std::int64_t tile, std::int64_t block, typename S::F32 scale) {
  const auto middle = S::set1(static_cast<float>(1 << (w.bits - 1)));
  return S::mul(scale, S::sub(zero_point_of<S>(w, tile, block), middle));
}

// `blocks` blocks of the weight as pairs of bfloat16.
template <class S, class Codes>
void unpack_pairs(const NBitsWeight& w, std::int64_t tile, std::int64_t k, std::int64_t count, std::uint16_t* out) {
  constexpr int kTiles = S::kPanelTiles;
  constexpr std::int64_t kLineOfPairs = 2 * kTile;
  for (int t = 0; t < kTiles; ++t) {
    const std::int64_t from = tile + t < w.tiles ? tile + t : tile;
    for (std::int64_t s = 0; s < count; s += kSpan) {
      const std::uint8_t* span = span_of(w, from, (k + s) / kSpan);
      unroll<kGroups>(ONNXPRESS_EACH(g) {
        const auto codes = Codes::template pairs<decltype(g)::value>(span);
        std::uint16_t* to = out + ((s / 2 + 2 * g.value) * kTiles + t) * kLineOfPairs;
        S::store_pairs(to, codes.even);
        S::store_pairs(to + kTiles * kLineOfPairs, codes.odd);
      });
    }
  }
}

template <class S, int Rows>
void multiply_pairs(const NBitsProblem& p, const BFloat16Rows& a, const std::uint16_t* panel, std::int64_t tile,
                    std::int64_t row, std::int64_t first_block, std::int64_t end_block) {
  constexpr int kTiles = S::kPanelTiles;
  const NBitsWeight& w = *p.weight;
  const bool centred = symmetric(w);
  const std::uint16_t* x = a.values + row * a.row_values + first_block * w.block_size;
  typename S::F32 y[Rows][kTiles];
  load_sums<S>(p, tile, row, first_block, y);
  for (std::int64_t block = first_block; block < end_block; ++block) {
    typename S::F32 dots[Rows][kTiles];
    unroll<Rows>(ONNXPRESS_EACH(r) { unroll<kTiles>(ONNXPRESS_EACH(t) { dots[r.value][t.value] = S::zero(); }); });
    for (std::int64_t k = 0; k < w.block_size; k += 2, x += 2, panel += kTiles * 2 * kTile) {
      typename S::Pairs weights[kTiles];
      unroll<kTiles>(ONNXPRESS_EACH(t) { weights[t.value] = S::load_pairs(panel + t.value * 2 * kTile); });
      unroll<Rows>(ONNXPRESS_EACH(r) {
        const auto pair = S::broadcast_pair(x + r.value * a.row_values);
        unroll<kTiles>(
            ONNXPRESS_EACH(t) { dots[r.value][t.value] = S::dot(dots[r.value][t.value], weights[t.value], pair); });
      });
    }
    unroll<kTiles>(ONNXPRESS_EACH(t) {
      const std::int64_t from = tile + t.value < w.tiles ? tile + t.value : tile;
      const auto scale = scale_of<S>(w, from, block);
      unroll<Rows>(
          ONNXPRESS_EACH(r) { y[r.value][t.value] = S::fma(dots[r.value][t.value], scale, y[r.value][t.value]); });
      if (centred) return;
      const auto offset = offset_of<S>(w, from, block, scale);
      const float* sums = a.sums + block * a.stride + row;
      unroll<Rows>(
          ONNXPRESS_EACH(r) { y[r.value][t.value] = S::fnma(offset, S::set1(sums[r.value]), y[r.value][t.value]); });
    });
  }
  store_sums<S>(p, tile, row, y);
}

// work(panel, block, end_block) for all of K in segments of whole blocks.
template <class S, class Codes, class Work>
void for_each_panel(const NBitsWeight& w, std::int64_t first_tile, const Work& work) {
  alignas(64) std::uint16_t panel[kPairsK * S::kPanelTiles * kTile];
  // Whole spans too: where blocks are of 16, all of K are.
  const std::int64_t segment = kPairsK / w.block_size;
  for (std::int64_t block = 0; block < w.blocks; block += segment) {
    const std::int64_t end_block = w.blocks - block < segment ? w.blocks : block + segment;
    unpack_pairs<S, Codes>(w, first_tile, block * w.block_size, (end_block - block) * w.block_size, panel);
    work(panel, block, end_block);
  }
}

template <class S, class Codes>
void panel_bfloat16(const NBitsProblem& p, const BFloat16Rows& a, std::int64_t first_tile, std::int64_t begin,
                    std::int64_t end) {
  for_each_panel<S, Codes>(
      *p.weight, first_tile, [&](const std::uint16_t* panel, std::int64_t block, std::int64_t end_block) {
        for_each_group_of_rows<S::kRows>(begin, end, [&](auto rows_at_once, std::int64_t row) {
          multiply_pairs<S, decltype(rows_at_once)::value>(p, a, panel, first_tile, row, block, end_block);
        });
      });
}

// One row, straight from the packed weight: a panel would be written and read once each.
template <class S, class Codes>
void row_bfloat16(const NBitsProblem& p, const BFloat16Rows& a, std::int64_t first_tile, std::int64_t tiles) {
  const NBitsWeight& w = *p.weight;
  const bool centred = symmetric(w);
  for (std::int64_t tile = first_tile; tile < first_tile + tiles; ++tile) {
    typename S::F32 y = bias_of<S>(p, tile * kTile);
    typename S::F32 dots[4];  // as many chains of additions in flight
    const auto clear = [&]() __attribute__((always_inline)) {
      unroll<4>(ONNXPRESS_EACH(j) { dots[j.value] = S::zero(); });
    };
    const auto finish = [&](std::int64_t block) __attribute__((always_inline)) {
      const auto scale = scale_of<S>(w, tile, block);
      y = S::fma(S::add(S::add(dots[0], dots[1]), S::add(dots[2], dots[3])), scale, y);
      if (!centred) y = S::fnma(offset_of<S>(w, tile, block, scale), S::set1(a.sums[block * a.stride]), y);
      clear();
    };
    clear();
    for (std::int64_t k = 0; k < w.padded_k; k += kSpan) {
      const std::uint8_t* span = span_of(w, tile, k / kSpan);
      prefetch_ahead(span, w.bits);
      const std::int64_t block = k / w.block_size;
      unroll<kGroups>(ONNXPRESS_EACH(g) {
        if (g.value == 4 && w.block_size == kTile) finish(block);
        constexpr int kChain = decltype(g)::value % 2 * 2;
        const auto codes = Codes::template pairs<decltype(g)::value>(span);
        const std::uint16_t* x = a.values + k + 4 * g.value;
        dots[kChain] = S::dot(dots[kChain], codes.even, S::broadcast_pair(x));
        dots[kChain + 1] = S::dot(dots[kChain + 1], codes.odd, S::broadcast_pair(x + 2));
      });
      if (w.block_size == kTile) {
        finish(block + 1);
      } else if ((k + kSpan) % w.block_size == 0) {
        finish(block);
      }
    }
    S::store(p.Y + tile * kTile, y, w.N - tile * kTile);
  }
}

template <class S, class Codes>
constexpr NBitsBFloat16Product make_bfloat16_product() {
  return {S::kName, {}, 1, S::kPanelTiles, round_row<S>, row_bfloat16<S, Codes>, panel_bfloat16<S, Codes>};
}

}  // namespace
}  // namespace onnxpress
