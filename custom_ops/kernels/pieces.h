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

// work(first_tile, tiles, begin, end) for stretches of `tiles_a_piece` tiles times stretches of rows, which are
// multiples of row_step.
template <class Work>
void split(std::int64_t M, std::int64_t row_step, std::int64_t tiles, std::int64_t tiles_a_piece,
           const Parallel& parallel, const Work& work) {
  const std::int64_t columns = ceil_div(tiles, tiles_a_piece);
  // Rows are split only where there are few tiles: each piece reads its part of the weight anew.
  const std::int64_t wanted = columns >= 8 ? 1 : ceil_div(8, columns);
  const std::int64_t rows = ceil_div(ceil_div(M, clamp(wanted, 1, ceil_div(M, 48))), row_step) * row_step;
  const std::int64_t stretches = ceil_div(M, rows);
  parallel.for_each(static_cast<std::size_t>(columns * stretches), [&](std::size_t index) {
    const std::int64_t first = static_cast<std::int64_t>(index) / stretches * tiles_a_piece;
    const std::int64_t begin = static_cast<std::int64_t>(index) % stretches * rows;
    work(first, std::min(tiles_a_piece, tiles - first), begin, std::min(M, begin + rows));
  });
}

}  // namespace onnxpress
