// A product of M rows and tiles of columns in pieces for several threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/parallel.h"

namespace onnxpress {

// Below this many multiply-adds (some 4 us) waking a second thread costs more than it brings. Above, even one row
// gains: a weight that is not in the cache comes in at the bandwidth of two cores.
inline constexpr std::int64_t kWorthSplitting = 1 << 19;

// A piece of work must be large against the cost of fetching it (0.2 us), and small enough to balance the threads.
inline constexpr std::int64_t kPieceOfWork = 1 << 18;

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) {
  return std::max(low, std::min(value, high));
}

// work(row) for every row of `row_size` numbers, to be read once.
template <class Work>
void for_each_row(std::int64_t rows, std::int64_t row_size, const Parallel& parallel, const Work& work) {
  const std::int64_t rows_a_piece = clamp(kPieceOfWork / 16 / row_size, 1, rows);
  parallel.for_each(static_cast<std::size_t>(ceil_div(rows, rows_a_piece)), [&](std::size_t index) {
    const std::int64_t begin = static_cast<std::int64_t>(index) * rows_a_piece;
    const std::int64_t end = std::min(rows, begin + rows_a_piece);
    for (std::int64_t row = begin; row < end; ++row) work(row);
  });
}

// A piece of a product: tiles of columns, and rows from a multiple of `row_step` on, at most `most_rows` of them (a
// multiple too).
struct Piece {
  std::int64_t tiles;
  std::int64_t row_step = 1;
  std::int64_t most_rows = std::int64_t{1} << 40;
};

// work(first_tile, tiles, begin, end) for all pieces, those of the same rows one after the other.
template <class Work>
void split(std::int64_t M, std::int64_t tiles, const Piece& piece, const Parallel& parallel, const Work& work) {
  const std::int64_t columns = ceil_div(tiles, piece.tiles);
  // Where there are few tiles, rows are split too: each piece reads its part of the weight anew.
  const std::int64_t wanted = columns >= 8 ? 1 : ceil_div(8, columns);
  const std::int64_t even = ceil_div(M, clamp(wanted, 1, ceil_div(M, 48)));
  const std::int64_t rows = std::min(piece.most_rows, ceil_div(even, piece.row_step) * piece.row_step);
  parallel.for_each(static_cast<std::size_t>(columns * ceil_div(M, rows)), [&](std::size_t index) {
    const std::int64_t first = static_cast<std::int64_t>(index) % columns * piece.tiles;
    const std::int64_t begin = static_cast<std::int64_t>(index) / columns * rows;
    work(first, std::min(piece.tiles, tiles - first), begin, std::min(M, begin + rows));
  });
}

}  // namespace onnxpress
