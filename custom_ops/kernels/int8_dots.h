// Exact sums of products of bytes for a few rows and tiles, in registers over all of K.
#pragma once

#include <cstdint>

#include "kernels/tile.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kLine = 64;  // bytes: 64 k of a row, or 4 k of 16 columns

// How sums of products are made; an instruction set may know better.
template <class S>
struct DotBlock {
  // Rows of uint8 codes times tiles of 16 columns of int8 codes, which lie in lines of 4 k of the columns of a tile;
  // padded_k is a multiple of 16. `of_columns` are the sums of the codes of each column of the tiles; null where nobody
  // has them.
  template <int Rows, int Tiles>
  __attribute__((always_inline)) static void add(const std::uint8_t* x, std::int64_t row_bytes,
                                                 const std::int8_t* codes, std::int64_t padded_k,
                                                 const std::int32_t* /*of_columns*/,
                                                 typename S::I32 (&sums)[Rows][Tiles]) {
    unroll<Rows>(ONNXPRESS_EACH(r) { unroll<Tiles>(ONNXPRESS_EACH(t) { sums[r.value][t.value] = S::zero_int(); }); });
    const std::int64_t tile_bytes = padded_k * kTile;
    for (std::int64_t k = 0; k < padded_k; k += 16) {
      unroll<4>(ONNXPRESS_EACH(g) {
        typename S::Weights line[Tiles];
        unroll<Tiles>(
            ONNXPRESS_EACH(t) { line[t.value] = S::weights(codes + t.value * tile_bytes + g.value * kLine); });
        unroll<Rows>(ONNXPRESS_EACH(r) {
          const auto four = S::activations(x + r.value * row_bytes + 4 * g.value);
          unroll<Tiles>(
              ONNXPRESS_EACH(t) { sums[r.value][t.value] = S::dot(sums[r.value][t.value], four, line[t.value]); });
        });
      });
      codes += 4 * kLine;
      x += 16;
    }
  }
};

// The same, then finish(sums), of sums[Rows][Tiles].
template <class S, int Rows, int Tiles, class F>
__attribute__((always_inline)) inline void dot_block(const std::uint8_t* x, std::int64_t row_bytes,
                                                     const std::int8_t* codes, std::int64_t padded_k,
                                                     const std::int32_t* of_columns, const F& finish) {
  typename S::I32 sums[Rows][Tiles];
  DotBlock<S>::template add<Rows, Tiles>(x, row_bytes, codes, padded_k, of_columns, sums);
  finish(sums);
}

}  // namespace
}  // namespace onnxpress
