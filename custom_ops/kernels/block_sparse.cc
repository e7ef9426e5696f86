#include "kernels/block_sparse.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/block_sparse_kernels.h"
#include "kernels/kernel_table.h"
#include "kernels/tasks.h"
#include "kernels/workspace.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kRowsOfTile = 16;
constexpr std::int64_t kWorkPerQueuedTask = 1 << 19;  // multiply-adds of int8

// Tiles of rows that are multiplied at once share loads of the weight: four tiles where they leave no more rows empty
// than two do. But where lines of rows are loaded for one output alone, they should come from the L1 cache.
std::int64_t choose_tiles_at_once(const BlockSparseProblem& p, const BlockSparseKernels& kernels) {
  constexpr std::int64_t kMaxBytes = 1 << 16;
  const BlockSparseWeight& w = *p.weight;
  const std::int64_t tiles = ceil_div(p.M, kRowsOfTile);
  if (tiles == 1 || kernels.max_tiles_at_once == 1) return 1;
  if (w.gathers && w.block_n == 1 && w.padded_k * kRowsOfTile * 2 > kMaxBytes) return 1;
  return !w.bundles && ceil_div(tiles, 4) * 2 == ceil_div(tiles, 2) ? kernels.max_tiles_at_once : 2;
}

// How rows lie, without memory for them.
SparseRows plan_rows(const BlockSparseProblem& p, const BlockSparseKernels& kernels) {
  const BlockSparseWeight& w = *p.weight;
  SparseRows rows{};
  rows.tile = kernels.has_8_row_tiles && !w.is_float && p.M <= 8 ? 8 : kRowsOfTile;
  rows.tiles_at_once = p.M <= (w.is_float ? kernels.max_few_rows_float : kernels.max_few_rows_int8)
                           ? 0
                           : choose_tiles_at_once(p, kernels);
  rows.flip = kernels.flip;
  rows.zero_point = p.is_static ? p.input.zero_point : 128;
  rows.row_bytes = w.padded_k * (w.is_float ? 4 : 1);
  return rows;
}

// Rows of A that are multiplied at once, and of what such are a multiple.
std::int64_t step_of(const SparseRows& rows) { return rows.tile * std::max<std::int64_t>(rows.tiles_at_once, 1); }

// The memory that a product needs: parts one behind the other, each on a cache line.
class Workspace {
 public:
  // Where a part of so many bytes will be.
  std::int64_t add(std::int64_t bytes) {
    const std::int64_t offset = end_;
    end_ += ceil_div(bytes, kLine) * kLine;
    return offset;
  }
  void allocate() { memory_ = make_workspace(static_cast<std::size_t>(end_)); }
  std::uint8_t* at(std::int64_t offset) const { return memory_.get() + offset; }

 private:
  std::int64_t end_ = 0;
  Aligned<std::uint8_t> memory_;
};

// What `count` rows need, and the outputs.
struct RowOffsets {
  std::int64_t words, scales, starts;

  RowOffsets(const BlockSparseWeight& w, const SparseRows& rows, std::int64_t count, Workspace& workspace)
      : words(workspace.add(count * rows.row_bytes)),
        scales(workspace.add(std::max(count, kRowsOfTile) * std::int64_t{sizeof(float)})),
        starts(workspace.add(std::max(w.tiles * kTile, w.block_rows * w.block_n) * std::int64_t{sizeof(float)})) {}

  void set(const BlockSparseWeight& w, const Workspace& workspace, SparseRows& rows) const {
    rows.words = workspace.at(words);
    rows.scales = reinterpret_cast<float*>(workspace.at(scales));
    auto* to = reinterpret_cast<std::uint32_t*>(workspace.at(starts));  // modulo 2^32
    const auto zero_point = static_cast<std::uint32_t>(rows.zero_point - rows.flip);
    for (std::int64_t n = 0; n < w.N; ++n) to[n] = 0u - zero_point * static_cast<std::uint32_t>(w.sums[n]);
    rows.starts = reinterpret_cast<const std::int32_t*>(to);
  }
};

void multiply_few(const BlockSparseProblem& p, const BlockSparseKernels& kernels, SparseRows rows,
                  const Parallel& parallel) {
  const BlockSparseWeight& w = *p.weight;
  Workspace workspace;
  if (w.is_float) {  // as they are
    rows.words = const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(p.floats));
    rows.row_bytes = w.K * std::int64_t{sizeof(float)};
  } else {
    const RowOffsets offsets(w, rows, p.M, workspace);
    workspace.allocate();
    offsets.set(w, workspace, rows);
    for_each_row(p.M, w.padded_k, parallel, [&](std::int64_t row) { kernels.load_row(p, rows, row); });
  }
  const std::int64_t work = w.tile_entries[w.tiles] * kTile * 4 * p.M;
  // Small tasks: a thread that is late to wake up leaves its share to the others.
  const std::int64_t tiles = clamp(ceil_div(kWorkPerTask / 2 * w.tiles, std::max<std::int64_t>(work, 1)), 1, w.tiles);
  parallel.for_each(static_cast<std::size_t>(ceil_div(w.tiles, tiles)), [&](std::size_t task) {
    const std::int64_t begin = static_cast<std::int64_t>(task) * tiles;
    kernels.multiply_few(p, rows, begin, std::min(w.tiles, begin + tiles));
  });
}

// Lays out tiles of rows, each once, when a thread first needs it: no thread waits for rows that it does not multiply.
class LazyTiles {
 public:
  LazyTiles(const BlockSparseProblem& p, const BlockSparseKernels& kernels, const SparseRows& rows)
      : p_(p), kernels_(kernels), rows_(rows), states_(static_cast<std::size_t>(ceil_div(p.M, kRowsOfTile))) {}

  void load(std::size_t begin, std::size_t end) {
    end = std::min(end, states_.size());
    for (std::size_t tile = begin; tile < end; ++tile) {
      if (!claim(states_[tile])) continue;
      kernels_.load_tile(p_, rows_, static_cast<std::int64_t>(tile) * kRowsOfTile);
      states_[tile].store(kReady, std::memory_order_release);
    }
    for (std::size_t tile = begin; tile < end; ++tile) {
      while (states_[tile].load(std::memory_order_acquire) != kReady) std::this_thread::yield();
    }
  }

 private:
  enum : int { kMissing, kBusy, kReady };

  // An exchange would do as well if it did not undo kReady, which may come between the look and the claim.
  static bool claim(std::atomic<int>& state) {
    int missing = kMissing;
    return state.load(std::memory_order_relaxed) == kMissing &&
           state.compare_exchange_strong(missing, kBusy, std::memory_order_relaxed);
  }

  const BlockSparseProblem& p_;
  const BlockSparseKernels& kernels_;
  const SparseRows& rows_;
  std::vector<std::atomic<int>> states_;
};

// Hands out tasks: `columns` of them for each step of rows. A worker stays with its step while that has any left: rows
// that it laid out lie in its own cache, which can be far from another's.
class TaskQueue {
 public:
  TaskQueue(std::int64_t steps, std::int64_t columns)
      : columns_(columns), left_(steps * columns), taken_(static_cast<std::size_t>(steps)) {}

  struct Position {
    std::int64_t step = -1, column = 0;
  };

  // The worker's next task after `position`, at which a new worker has no step; false where none is left.
  bool take(Position& position) {
    if (left_.fetch_sub(1, std::memory_order_relaxed) <= 0) return false;
    auto step = static_cast<std::size_t>(position.step);
    if (position.step < 0) step = next(0);
    for (;; step = next(step)) {
      std::atomic<std::int64_t>& taken = taken_[step];
      if (taken.load(std::memory_order_relaxed) >= columns_) continue;
      const std::int64_t column = taken.fetch_add(1, std::memory_order_relaxed);
      if (column >= columns_) continue;
      position = {static_cast<std::int64_t>(step), column};
      return true;
    }
  }

 private:
  // A step that no worker has begun, or else the one behind.
  std::size_t next(std::size_t step) {
    const bool all_begun = begun_.load(std::memory_order_relaxed) >= taken_.size();
    return (all_begun ? step + 1 : begun_.fetch_add(1, std::memory_order_relaxed)) % taken_.size();
  }

  const std::int64_t columns_;
  std::atomic<std::int64_t> left_;
  std::atomic<std::size_t> begun_{0};
  std::vector<std::atomic<std::int64_t>> taken_;
};

// How many can work at once, whatever the number of threads: each has memory of its own from the start.
std::int64_t workers_for(std::int64_t tasks) {
  static const std::int64_t processors = std::thread::hardware_concurrency();
  return clamp(tasks, 1, std::max<std::int64_t>(processors, 1));
}

// How the product is divided: into steps of rows, and block rows into columns of whole parts. Both begin where a block
// row and a tile of outputs do.
struct Partition {
  std::int64_t part, block_rows, columns;  // block rows of a part and of a column, and how many columns

  Partition(const BlockSparseWeight& w, std::int64_t step) {
    const std::int64_t unit = std::lcm(w.block_n, kTile) / w.block_n;
    const std::int64_t units = ceil_div(w.block_rows, unit);
    const std::int64_t work = w.strip_words * (w.is_float ? 16 : 4) * step / units;
    const std::int64_t wanted = clamp(ceil_div(kWorkPerQueuedTask, std::max<std::int64_t>(work, 1)), 1, units);
    const std::int64_t units_of_part = clamp(kOutputsOfPart / (unit * w.block_n), 1, units);
    part = units_of_part * unit;
    block_rows = ceil_div(wanted, units_of_part) * part;
    columns = ceil_div(w.block_rows, block_rows);
  }
};

// The buffers of workers: so many bytes each, of which the first are for the sums of a part.
struct WorkerBuffers {
  std::uint8_t* first;
  std::int64_t bytes, sums;
};

void multiply_chunk(const BlockSparseProblem& p, const BlockSparseKernels& kernels, const SparseRows& rows,
                    const Partition& partition, const WorkerBuffers& buffers, const Parallel& parallel) {
  const std::int64_t step = step_of(rows), steps = ceil_div(p.M, step);
  LazyTiles tiles(p, kernels, rows);
  TaskQueue tasks(steps, partition.columns);
  parallel.for_each(static_cast<std::size_t>(workers_for(steps * partition.columns)), [&](std::size_t worker) {
    SparseTask task{};
    task.part = partition.part;
    task.sums = buffers.first + static_cast<std::int64_t>(worker) * buffers.bytes;
    task.chunk = task.sums + buffers.sums;
    for (TaskQueue::Position position; tasks.take(position);) {
      task.first_row = position.step * step;
      const auto first_tile = static_cast<std::size_t>(task.first_row / kRowsOfTile);
      tiles.load(first_tile, first_tile + static_cast<std::size_t>(rows.tiles_at_once));
      task.block_row = position.column * partition.block_rows;
      task.end = std::min(task.block_row + partition.block_rows, p.weight->block_rows);
      kernels.multiply(p, rows, task);
    }
  });
}

void multiply_many(const BlockSparseProblem& p, const BlockSparseKernels& kernels, SparseRows rows,
                   const Parallel& parallel) {
  const BlockSparseWeight& w = *p.weight;
  const std::int64_t step = step_of(rows), chunk = rows_per_chunk(p.M, rows.row_bytes, step);
  const std::int64_t steps = ceil_div(chunk, step);
  const Partition partition(w, step);
  const std::int64_t sums = partition.part * w.block_n * kLine * rows.tiles_at_once;
  const std::int64_t bytes = sums + kChunk * kLine * rows.tiles_at_once;
  Workspace workspace;
  const RowOffsets offsets(w, rows, steps * step, workspace);
  const std::int64_t buffers = workspace.add(workers_for(steps * partition.columns) * bytes);
  workspace.allocate();
  offsets.set(w, workspace, rows);
  for (std::int64_t begin = 0; begin < p.M; begin += chunk) {
    BlockSparseProblem part = p;
    part.M = std::min(chunk, p.M - begin);
    if (p.floats != nullptr) part.floats += begin * w.K;
    if (p.codes != nullptr) part.codes += begin * w.K;
    if (p.floats_out != nullptr) part.floats_out += begin * w.N;
    if (p.codes_out != nullptr) part.codes_out += begin * w.N;
    multiply_chunk(part, kernels, rows, partition, {workspace.at(buffers), bytes, sums}, parallel);
  }
}

}  // namespace

const char* block_sparse_matmul(const BlockSparseProblem& p, Isa isa, const Parallel& pool) {
  const BlockSparseKernels& kernels = best_kernels<BlockSparseKernels>(isa);
  const BlockSparseWeight& w = *p.weight;
  if (p.M == 0) return kernels.isa;
  const Sequential alone;
  const bool small = p.M * w.tile_entries[w.tiles] * kTile * 4 < kMinParallelWork;
  const Parallel& parallel = small ? static_cast<const Parallel&>(alone) : pool;
  const SparseRows rows = plan_rows(p, kernels);
  if (rows.tiles_at_once == 0) {
    multiply_few(p, kernels, rows, parallel);
  } else {
    multiply_many(p, kernels, rows, parallel);
  }
  return kernels.isa;
}

}  // namespace onnxpress
