#include "kernels/encoder_layer.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "kernels/encoder_layer_kernels.h"
#include "kernels/kernel_table.h"
#include "kernels/tasks.h"
#include "kernels/workspace.h"

namespace onnxpress {
namespace {

// Rows of a task: several for each thread, so that a slow one holds up no other, and few enough for the caches.
constexpr std::int64_t kTasks = 8, kLeastRows = 6, kMostRows = 24;
constexpr std::int64_t kMaxWorkers = 32;

struct Tokens {
  std::vector<std::int64_t> rows;
  std::vector<Sequence> sequences;
  std::int64_t head_tiles = 0;  // of all heads of all sequences
  std::int64_t longest = 0;     // tiles of keys
};

Tokens find_tokens(const EncoderProblem& p) {
  Tokens tokens;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const auto begin = static_cast<std::int64_t>(tokens.rows.size());
    for (std::int64_t i = b * p.sequence; i < (b + 1) * p.sequence; ++i) {
      if (p.mask == nullptr || p.mask[i] != 0) tokens.rows.push_back(i);
    }
    const std::int64_t count = static_cast<std::int64_t>(tokens.rows.size()) - begin;
    if (count == 0) continue;
    const std::int64_t tiles = ceil_div(count, kTile);
    tokens.sequences.push_back({begin, count, tiles, tokens.head_tiles});
    tokens.head_tiles += tiles * p.layer->heads;
    tokens.longest = std::max(tokens.longest, tiles);
  }
  return tokens;
}

// Zeros where tokens are left out.
void clear_others(const EncoderProblem& p, const std::vector<std::int64_t>& rows) {
  const std::int64_t H = p.layer->H(), all = p.batch * p.sequence;
  std::int64_t next = 0;
  const auto clear_up_to = [&](std::int64_t row) {
    if (row > next) std::memset(p.y + next * H, 0, static_cast<std::size_t>((row - next) * H) * sizeof(float));
    next = row + 1;
  };
  for (std::int64_t row : rows) clear_up_to(row);
  clear_up_to(all);
}

// Hands out parts of one allocation, each on a cache line; without memory it only counts.
class Carver {
 public:
  explicit Carver(std::uint8_t* memory) : memory_(memory) {}

  template <class T>
  T* take(std::int64_t count) {
    const std::size_t at = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  std::size_t used() const { return used_; }

 private:
  std::uint8_t* memory_;
  std::size_t used_ = 0;
};

void carve_run(Carver& carver, const EncoderLayer& layer, const Tokens& tokens, EncoderRun& run) {
  const std::int64_t keys = tokens.head_tiles * kTile;
  run.qkv = carver.take<float>(run.rows * layer.qkv.weight.N);
  run.keys = carver.take<std::int8_t>(keys * run.padded_width);
  run.key_scales = carver.take<float>(keys);
  run.key_offsets = carver.take<std::int32_t>(keys);
  run.values = carver.take<std::int8_t>(keys * run.padded_width);
  run.value_scales = carver.take<float>(run.sequence_count * layer.heads * run.padded_width);
}

void carve_scratch(Carver& carver, const EncoderLayer& layer, std::int64_t rows, std::int64_t longest,
                   std::int64_t padded_width, EncoderScratch& scratch) {
  const std::int64_t keys = longest * kTile;
  const std::int64_t bytes = std::max({layer.qkv.weight.padded_k, layer.out.weight.padded_k, layer.down.weight.padded_k,
                                       ceil_div(keys, 64) * 64, ceil_div(padded_width, 64) * 64});
  // An odd number of cache lines: rows whose distance is a power of two would share a few sets of the L1 cache.
  scratch.code_bytes = bytes / 64 % 2 != 0 ? bytes : bytes + 64;
  scratch.score_stride = keys + kTile;
  scratch.codes = carver.take<std::uint8_t>(rows * scratch.code_bytes);
  scratch.scales = carver.take<float>(rows);
  scratch.zero_points = carver.take<std::int32_t>(rows);
  scratch.context = carver.take<float>(rows * layer.heads * layer.width);
  scratch.hidden = carver.take<float>(rows * layer.H());
  scratch.wide = carver.take<float>(std::max(rows * layer.F(), layer.H()));
  scratch.scores = carver.take<float>(rows * scratch.score_stride);
}

// work(scratch, begin, end) for all rows, `rows_per_task` at a time.
template <class Work>
void for_each_rows(std::int64_t rows, std::int64_t rows_per_task, const std::vector<EncoderScratch>& scratches,
                   const Parallel& parallel, const Work& work) {
  const std::int64_t tasks = ceil_div(rows, rows_per_task);
  std::atomic<std::int64_t> next{0};
  // A worker for each scratch, which takes tasks until there are none.
  parallel.for_each(scratches.size(), [&](std::size_t worker) {
    for (std::int64_t task = next++; task < tasks; task = next++) {
      const std::int64_t begin = task * rows_per_task;
      work(scratches[worker], begin, std::min(rows, begin + rows_per_task));
    }
  });
}

}  // namespace

const char* encoder_layer(const EncoderProblem& p, Isa isa, const Parallel& pool) {
  const EncoderKernels& kernels = best_kernels<EncoderKernels>(isa);
  const EncoderLayer& layer = *p.layer;
  const Tokens tokens = find_tokens(p);
  clear_others(p, tokens.rows);
  if (tokens.rows.empty()) return kernels.isa;

  EncoderRun run{};
  run.problem = &p;
  run.rows = static_cast<std::int64_t>(tokens.rows.size());
  run.tokens = tokens.rows.data();
  run.sequences = tokens.sequences.data();
  run.sequence_count = static_cast<std::int64_t>(tokens.sequences.size());
  run.padded_width = ceil_div(layer.width, kTile) * kTile;
  const std::int64_t rows_per_task = clamp(ceil_div(run.rows, kTasks), kLeastRows, kMostRows);
  std::vector<EncoderScratch> scratches(
      static_cast<std::size_t>(std::min(kMaxWorkers, ceil_div(run.rows, rows_per_task))));
  const auto carve = [&](std::uint8_t* memory) {
    Carver carver(memory);
    carve_run(carver, layer, tokens, run);
    for (EncoderScratch& each : scratches) {
      carve_scratch(carver, layer, rows_per_task, tokens.longest, run.padded_width, each);
    }
    return carver.used();
  };
  const auto memory = make_workspace(carve(nullptr));
  carve(memory.get());

  for_each_rows(run.rows, rows_per_task, scratches, pool, [&](const auto&... task) { kernels.project(run, task...); });
  pool.for_each(static_cast<std::size_t>(run.sequence_count * layer.heads), [&](std::size_t index) {
    const auto at = static_cast<std::int64_t>(index);
    kernels.pack_head(run, run.sequences[at / layer.heads], at % layer.heads);
  });
  for_each_rows(run.rows, rows_per_task, scratches, pool, [&](const auto&... task) { kernels.finish(run, task...); });
  return kernels.isa;
}

}  // namespace onnxpress
