#include "kernels/block_sparse.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/block_sparse_kernels.h"
#include "kernels/pieces.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kRowsOfTile = 16;
constexpr std::int64_t kWorkOfPiece = 1 << 19;  // multiply-adds of int8

const BlockSparseKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512Vnni) return block_sparse_kernels_avx512vnni();
  if (isa >= Isa::kAvx2) return block_sparse_kernels_avx2();
#endif
  (void)isa;
  return block_sparse_kernels_scalar();
}

// Room that a thread keeps from one problem to the next.
class Room {
 public:
  std::uint8_t* of(std::size_t bytes) {
    if (bytes > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_ = make_aligned<std::uint8_t>(bytes);
      capacity_ = bytes;
    }
    return memory_.get();
  }

 private:
  Aligned<std::uint8_t> memory_;
  std::size_t capacity_ = 0;
};

// Tiles of rows that are multiplied at once share loads of the weight: four tiles where they leave no more rows empty
// than two do. But where lines of rows are loaded for one output alone, they should come from the L1 cache.
std::int64_t together_of(const BlockSparseProblem& p, const BlockSparseKernels& kernels) {
  constexpr std::int64_t kMostBytes = 1 << 16;
  const BlockSparseWeight& w = *p.weight;
  const std::int64_t tiles = ceil_div(p.M, kRowsOfTile);
  if (tiles == 1 || kernels.most_together == 1) return 1;
  if (w.gathers && w.block_n == 1 && w.padded_k * kRowsOfTile * 2 > kMostBytes) return 1;
  return !w.bundles && ceil_div(tiles, 4) * 2 == ceil_div(tiles, 2) ? kernels.most_together : 2;
}

SparseRows make_rows(const BlockSparseProblem& p, const BlockSparseKernels& kernels) {
  static thread_local Room room;
  const BlockSparseWeight& w = *p.weight;
  SparseRows rows{};
  rows.tile = kernels.has_halves && !w.is_float && p.M <= 8 ? 8 : kRowsOfTile;
  rows.together = p.M <= (w.is_float ? kernels.few_floats : kernels.few_codes) ? 0 : together_of(p, kernels);
  rows.zero_point = p.is_static ? p.input.zero_point : 128;
  rows.row_bytes = w.padded_k * (w.is_float ? 4 : 1);
  if (rows.together == 0 && w.is_float) {  // as they are
    rows.words = const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(p.floats));
    rows.row_bytes = w.K * 4;
    return rows;
  }
  const std::int64_t step = rows.tile * std::max<std::int64_t>(rows.together, 1);
  const std::int64_t count = ceil_div(p.M, step) * step, scales = std::max(count, kRowsOfTile);
  const std::int64_t outputs = std::max(w.tiles * kTile, w.block_rows * w.block_n);
  const auto bytes = static_cast<std::size_t>(count * rows.row_bytes);
  rows.words = room.of(bytes + static_cast<std::size_t>(scales + outputs) * sizeof(float));
  rows.scales = reinterpret_cast<float*>(rows.words + bytes);
  auto* starts = reinterpret_cast<std::uint32_t*>(rows.scales + scales);  // modulo 2^32
  const auto zero_point = static_cast<std::uint32_t>(rows.zero_point);
  for (std::int64_t n = 0; n < w.N; ++n) starts[n] = 0u - zero_point * static_cast<std::uint32_t>(w.sums[n]);
  rows.starts = reinterpret_cast<const std::int32_t*>(starts);
  return rows;
}

void multiply_few(const BlockSparseProblem& p, const BlockSparseKernels& kernels, const SparseRows& rows,
                  const Parallel& parallel) {
  const BlockSparseWeight& w = *p.weight;
  if (!w.is_float) {
    for_each_row(p.M, w.padded_k, parallel, [&](std::int64_t row) { kernels.load_row(p, rows, row); });
  }
  const std::int64_t work = w.tile_entries[w.tiles] * kTile * 4 * p.M;
  // Small pieces: a thread that is late to wake up leaves its share to the others.
  const std::int64_t tiles = clamp(ceil_div(kPieceOfWork / 2 * w.tiles, std::max<std::int64_t>(work, 1)), 1, w.tiles);
  parallel.for_each(static_cast<std::size_t>(ceil_div(w.tiles, tiles)), [&](std::size_t piece) {
    const std::int64_t begin = static_cast<std::int64_t>(piece) * tiles;
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
      static thread_local Room room;
      std::uint8_t* memory = room.of(static_cast<std::size_t>(kRowsOfTile * (rows_.row_bytes + kLine)));
      kernels_.load_tile(p_, rows_, static_cast<std::int64_t>(tile) * kRowsOfTile, memory);
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

// Hands out pieces: `columns` of them for each step of rows. A thread stays with its step while that has any left: rows
// that it laid out lie in its own cache, which can be far from another thread's.
class Pieces {
 public:
  Pieces(std::int64_t steps, std::int64_t columns)
      : call_(new_call()), columns_(columns), taken_(static_cast<std::size_t>(steps)) {}

  struct Place {
    std::int64_t step, column;
  };

  // To be called once for each piece, on the thread that works on it.
  Place take() {
    static thread_local std::uint64_t call = 0;
    static thread_local std::size_t step = 0;
    if (call != call_) step = next(0);
    call = call_;
    for (;; step = next(step)) {
      std::atomic<std::int64_t>& taken = taken_[step];
      if (taken.load(std::memory_order_relaxed) >= columns_) continue;
      const std::int64_t column = taken.fetch_add(1, std::memory_order_relaxed);
      if (column < columns_) return {static_cast<std::int64_t>(step), column};
    }
  }

 private:
  static std::uint64_t new_call() {
    static std::atomic<std::uint64_t> calls{0};
    return calls.fetch_add(1, std::memory_order_relaxed) + 1;
  }

  // A step that no thread has begun, or else the one behind.
  std::size_t next(std::size_t step) {
    const bool all_begun = begun_.load(std::memory_order_relaxed) >= taken_.size();
    return (all_begun ? step + 1 : begun_.fetch_add(1, std::memory_order_relaxed)) % taken_.size();
  }

  const std::uint64_t call_;
  const std::int64_t columns_;
  std::atomic<std::size_t> begun_{0};
  std::vector<std::atomic<std::int64_t>> taken_;
};

void multiply_many(const BlockSparseProblem& p, const BlockSparseKernels& kernels, const SparseRows& rows,
                   const Parallel& parallel) {
  const BlockSparseWeight& w = *p.weight;
  const std::int64_t step = rows.tile * rows.together;
  LazyTiles tiles(p, kernels, rows);

  // Pieces and their parts begin where a block row and a tile of outputs do.
  const std::int64_t unit = std::lcm(w.block_n, kTile) / w.block_n;
  const std::int64_t units = ceil_div(w.block_rows, unit);
  const std::int64_t work = w.strip_words * (w.is_float ? 16 : 4) * step / units;
  const std::int64_t wanted = clamp(ceil_div(kWorkOfPiece, std::max<std::int64_t>(work, 1)), 1, units);
  const std::int64_t part = clamp(kOutputsOfPart / (unit * w.block_n), 1, units);
  const std::int64_t block_rows = ceil_div(wanted, part) * part * unit;
  const std::int64_t columns = ceil_div(w.block_rows, block_rows);
  const auto sums = static_cast<std::size_t>(part * unit * w.block_n * kLine * rows.together);
  const std::int64_t steps = ceil_div(p.M, step);
  Pieces pieces(steps, columns);
  parallel.for_each(static_cast<std::size_t>(columns * steps), [&](std::size_t) {
    static thread_local Room room;
    const Pieces::Place place = pieces.take();
    SparsePiece piece{};
    piece.first_row = place.step * step;
    const auto first_tile = static_cast<std::size_t>(piece.first_row / kRowsOfTile);
    tiles.load(first_tile, first_tile + static_cast<std::size_t>(rows.together));
    piece.block_row = place.column * block_rows;
    piece.end = std::min(piece.block_row + block_rows, w.block_rows);
    piece.part = part * unit;
    piece.sums = room.of(sums + static_cast<std::size_t>(kChunk * kLine * rows.together));
    piece.chunk = piece.sums + sums;
    kernels.multiply(p, rows, piece);
  });
}

}  // namespace

const char* block_sparse_matmul(const BlockSparseProblem& p, Isa isa, const Parallel& pool) {
  const BlockSparseKernels& kernels = kernels_of(isa);
  const BlockSparseWeight& w = *p.weight;
  if (p.M == 0) return kernels.isa;
  const Sequential alone;
  const bool small = p.M * w.tile_entries[w.tiles] * kTile * 4 < kWorthSplitting;
  const Parallel& parallel = small ? static_cast<const Parallel&>(alone) : pool;
  const SparseRows rows = make_rows(p, kernels);
  if (rows.together == 0) {
    multiply_few(p, kernels, rows, parallel);
  } else {
    multiply_many(p, kernels, rows, parallel);
  }
  return kernels.isa;
}

}  // namespace onnxpress
