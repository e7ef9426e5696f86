// How a product of M rows and tiles of columns is divided into tasks for several threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/parallel.h"

namespace onnxpress {

// Below this many multiply-adds (some 4 us) waking a second thread costs more than it brings. Above, even one row
// gains: a weight that is not in the cache comes in at the bandwidth of two cores.
inline constexpr std::int64_t kMinParallelWork = 1 << 19;

// Multiply-adds of a task: many against the cost of fetching it (0.2 us), and few enough to balance the threads.
inline constexpr std::int64_t kWorkPerTask = 1 << 18;

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) {
  return std::max(low, std::min(value, high));
}

// work(row) for every row of `row_size` numbers, to be read once.
template <class Work>
void for_each_row(std::int64_t rows, std::int64_t row_size, const Parallel& parallel, const Work& work) {
  const std::int64_t rows_per_task = clamp(kWorkPerTask / 16 / row_size, 1, rows);
  parallel.for_each(static_cast<std::size_t>(ceil_div(rows, rows_per_task)), [&](std::size_t index) {
    const std::int64_t begin = static_cast<std::int64_t>(index) * rows_per_task;
    const std::int64_t end = std::min(rows, begin + rows_per_task);
    for (std::int64_t row = begin; row < end; ++row) work(row);
  });
}

// The size of a task: tiles of columns, and rows from a multiple of `row_step` on, at most `max_rows` of them (a
// multiple too). Tiles are `fixed` where the work takes all of them but for what is beyond the last column.
struct Grain {
  std::int64_t tiles;
  std::int64_t row_step = 1;
  std::int64_t max_rows = std::int64_t{1} << 40;
  bool fixed = false;
};

// work(first_tile, tiles, begin, end) for all tasks, those of the same rows one after the other.
template <class Work>
void for_each_task(std::int64_t M, std::int64_t tiles, const Grain& grain, const Parallel& parallel, const Work& work) {
  const std::int64_t columns = ceil_div(tiles, grain.tiles);
  // Where there are few tiles, rows are split too: each task reads its part of the weight anew.
  const std::int64_t wanted = columns >= 8 ? 1 : ceil_div(8, columns);
  const std::int64_t even = ceil_div(M, clamp(wanted, 1, ceil_div(M, 48)));
  const std::int64_t rows = std::min(grain.max_rows, ceil_div(even, grain.row_step) * grain.row_step);
  parallel.for_each(static_cast<std::size_t>(columns * ceil_div(M, rows)), [&](std::size_t index) {
    const std::int64_t first = static_cast<std::int64_t>(index) % columns * grain.tiles;
    const std::int64_t begin = static_cast<std::int64_t>(index) / columns * rows;
    work(first, std::min(grain.tiles, tiles - first), begin, std::min(M, begin + rows));
  });
}

}  // namespace onnxpress
