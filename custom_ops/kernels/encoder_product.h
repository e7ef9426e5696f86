// The one product of encoder_layer: rounded rows times columns of int8 codes, of a weight, of keys or of values.
#pragma once

#include <cstdint>

#include "kernels/encoder_layer_kernels.h"
#include "kernels/int8_dots.h"

namespace onnxpress {
namespace {

// Columns in tiles of 16, as dot_block reads them.
struct Columns {
  const std::int8_t* codes;
  std::int64_t padded_k;
  const std::int32_t*
      sums;  // of the codes of a column, which zero points of rows are multiplied with; null: those are 0
  const float* scales;
  const float* bias;  // null: none
  std::int64_t count;
};

inline Columns columns_of(const EncoderProduct& product) {
  const Int8Weight& w = product.weight;
  return {w.codes, w.padded_k, w.sums, w.scales, product.bias, w.N};
}

// What sums of a tile of columns become floats with.
template <class S>
struct ColumnFactors {
  typename S::I32 of_codes;
  typename S::F32 scales, bias;
  std::int64_t column, left;

  ColumnFactors(const Columns& columns, std::int64_t tile) : column(tile * kTile), left(columns.count - column) {
    of_codes = columns.sums != nullptr ? S::load(columns.sums + column) : S::zero_int();
    scales = S::load(columns.scales + column);
    bias = columns.bias != nullptr ? S::load(columns.bias + column, left) : S::zero();
  }

  __attribute__((always_inline)) void finish(typename S::I32 sums, const EncoderScratch& scratch, std::int64_t row,
                                             float* out) const {
    const auto zero_point = S::set1(scratch.zero_points[row]);
    const auto sum = S::to_float(S::sub(sums, S::mul(of_codes, zero_point)));
    const auto factors = S::mul(S::set1(scratch.scales[row]), scales);
    S::store(out + column, S::add(S::mul(sum, factors), bias), left);
  }
};

template <class S, int Rows, int Tiles>
void multiply_block(const Columns& columns, const EncoderScratch& scratch, std::int64_t row, std::int64_t tile,
                    float* out, std::int64_t stride) {
  const std::uint8_t* x = scratch.codes + row * scratch.code_bytes;
  const std::int8_t* codes = columns.codes + tile * columns.padded_k * kTile;
  const std::int32_t* of_columns = columns.sums != nullptr ? columns.sums + tile * kTile : nullptr;
  dot_block<S, Rows, Tiles>(
      x, scratch.code_bytes, codes, columns.padded_k, of_columns, [&](const auto& sums) __attribute__((always_inline)) {
        unroll<Tiles>(ONNXPRESS_EACH(t) {
          const ColumnFactors<S> factors(columns, tile + t.value);
          unroll<Rows>(ONNXPRESS_EACH(r) {
            factors.finish(sums[r.value][t.value], scratch, row + r.value, out + (row + r.value) * stride);
          });
        });
      });
}

// Rows [first, first + count) of the scratch to those of `out`. A few tiles at a time, which stay in the L1 cache from
// one group of rows to the next.
template <class S>
void multiply_rows(const Columns& columns, const EncoderScratch& scratch, std::int64_t first, std::int64_t count,
                   float* out, std::int64_t stride) {
  const std::int64_t tiles = (columns.count + kTile - 1) / kTile;
  const auto panels = [&](auto tiles_at_once, std::int64_t tile) {
    constexpr int kTiles = decltype(tiles_at_once)::value;
    for (; tile + kTiles <= tiles; tile += kTiles) {
      for_each_group_of_rows<S::kInt8Rows>(first, first + count, [&](auto rows, std::int64_t row) {
        multiply_block<S, decltype(rows)::value, kTiles>(columns, scratch, row, tile, out, stride);
      });
    }
    return tile;
  };
  constexpr int kPanel = S::template int8_tiles<S::kInt8Rows>();
  std::int64_t tile = panels(Index<kPanel>{}, 0);
  if constexpr (kPanel > 2) tile = panels(Index<2>{}, tile);
  if constexpr (kPanel > 1) panels(Index<1>{}, tile);
}

}  // namespace
}  // namespace onnxpress
