#include "kernels/encoder_layer.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "kernels/encoder_layer_kernels.h"
#include "kernels/kernel_table.h"
#include "kernels/tasks.h"
#include "kernels/workspace.h"

namespace onnxpress {
namespace {

// Of sequences that one thread takes from input to output, where there are several for each: their projections stay in
// the L2 cache, and no thread waits for another.
constexpr std::int64_t kGroupRows = 128, kGroupsOfThread = 2;
constexpr std::int64_t kMaxThreads = 32;

// Sequences that are computed together, with rows and tiles counted from their first.
struct Group {
  const std::int64_t* tokens = nullptr;
  std::int64_t rows = 0, head_tiles = 0, longest = 0;
  std::vector<Sequence> sequences;

  void add(std::int64_t count, std::int64_t heads) {
    const std::int64_t tiles = ceil_div(count, kTile);
    sequences.push_back({rows, count, tiles, head_tiles});
    rows += count;
    head_tiles += tiles * heads;
    longest = std::max(longest, tiles);
  }
};

// The rows that are computed, and how many of each sequence that has some.
struct Tokens {
  std::vector<std::int64_t> rows, counts;
};

Tokens find_tokens(const EncoderProblem& p) {
  Tokens tokens;
  for (std::int64_t begin = 0; begin < p.batch * p.sequence; begin += p.sequence) {
    const std::size_t before = tokens.rows.size();
    for (std::int64_t i = begin; i < begin + p.sequence; ++i) {
      if (p.mask == nullptr || p.mask[i] != 0) tokens.rows.push_back(i);
    }
    const std::size_t count = tokens.rows.size() - before;
    if (count != 0) tokens.counts.push_back(static_cast<std::int64_t>(count));
  }
  return tokens;
}

// In the order of the batch, a new group from `most_rows` rows on.
std::vector<Group> make_groups(const Tokens& tokens, std::int64_t heads, std::int64_t most_rows) {
  std::vector<Group> groups;
  const std::int64_t* next = tokens.rows.data();
  for (const std::int64_t count : tokens.counts) {
    if (groups.empty() || groups.back().rows + count > most_rows) {
      groups.emplace_back();
      groups.back().tokens = next;
    }
    groups.back().add(count, heads);
    next += count;
  }
  return groups;
}

// That a session may have. Asked once: the answer comes from files of the system.
std::int64_t most_threads() {
  static const std::int64_t found = clamp(std::thread::hardware_concurrency(), 1, kMaxThreads);
  return found;
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
  if (p.significance != nullptr) std::fill_n(p.significance, all, 0.0f);
}

// What each token of a run received, from what the threads counted of it.
void write_significance(const EncoderRun& run, const EncoderScratch* scratches, std::size_t count) {
  for (std::int64_t row = 0; row < run.rows; ++row) {
    std::uint64_t sum = 0;
    bool poisoned = false;
    for (std::size_t i = 0; i < count; ++i) {
      sum += scratches[i].received[row];
      poisoned = poisoned || scratches[i].received[row] >= kPoisoned;
    }
    const double parts = poisoned ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(sum);
    run.problem->significance[run.tokens[row]] = static_cast<float>(parts / kWhole);
  }
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

std::int64_t padded_width(const EncoderLayer& layer) { return ceil_div(layer.width, kTile) * kTile; }

// For groups of at most so many rows, tiles and sequences.
EncoderRun carve_run(Carver& carver, const EncoderProblem& p, std::int64_t rows, std::int64_t head_tiles,
                     std::int64_t sequences) {
  const EncoderLayer& layer = *p.layer;
  const std::int64_t keys = head_tiles * kTile;
  EncoderRun run{};
  run.problem = &p;
  run.padded_width = padded_width(layer);
  run.qkv = carver.take<float>(rows * layer.qkv.weight.N);
  run.keys = carver.take<std::int8_t>(keys * run.padded_width + kBehindKeys);
  run.key_scales = carver.take<float>(keys);
  run.key_sums = carver.take<std::int32_t>(keys);
  run.values = carver.take<std::int8_t>(keys * run.padded_width + kBehindKeys);
  run.value_scales = carver.take<float>(sequences * layer.heads * run.padded_width);
  return run;
}

void set_group(EncoderRun& run, const Group& group) {
  run.rows = group.rows;
  run.tokens = group.tokens;
  run.sequences = group.sequences.data();
  run.sequence_count = static_cast<std::int64_t>(group.sequences.size());
}

// For tasks of so many rows, of which codes are read `row_step` at a time, of runs of at most so many.
EncoderScratch carve_scratch(Carver& carver, const EncoderProblem& p, std::int64_t rows, std::int64_t row_step,
                             std::int64_t longest, std::int64_t rows_of_run) {
  const EncoderLayer& layer = *p.layer;
  const std::int64_t keys = longest * kTile;
  const std::int64_t bytes = std::max({layer.qkv.weight.padded_k, layer.out.weight.padded_k, layer.down.weight.padded_k,
                                       ceil_div(keys, 64) * 64, ceil_div(padded_width(layer), 64) * 64});
  EncoderScratch scratch{};
  // An odd number of cache lines: rows whose distance is a power of two would share a few sets of the L1 cache.
  scratch.code_bytes = bytes / 64 % 2 != 0 ? bytes : bytes + 64;
  scratch.score_stride = keys + kTile;
  scratch.codes = carver.take<std::uint8_t>(ceil_div(rows, row_step) * row_step * scratch.code_bytes);
  scratch.scales = carver.take<float>(rows);
  scratch.zero_points = carver.take<std::int32_t>(rows);
  scratch.context = carver.take<float>(rows * layer.heads * layer.width);
  scratch.hidden = carver.take<float>(rows * layer.H());
  scratch.wide = carver.take<float>(rows * std::max(layer.F(), layer.H()));
  scratch.scores = carver.take<float>(rows * scratch.score_stride);
  if (p.significance != nullptr) scratch.received = carver.take<std::uint64_t>(rows_of_run);
  return scratch;
}

// work(begin, end) for all rows, `step` at a time.
template <class Work>
void for_rows(std::int64_t rows, std::int64_t step, const Work& work) {
  for (std::int64_t begin = 0; begin < rows; begin += step) work(begin, std::min(rows, begin + step));
}

// work(worker, item) for all items, by `workers` tasks that each take the next one until there is none.
template <class Work>
void share_out(std::int64_t items, std::int64_t workers, const Parallel& parallel, const Work& work) {
  std::atomic<std::int64_t> next{0};
  parallel.for_each(static_cast<std::size_t>(std::min(items, workers)), [&](std::size_t worker) {
    for (std::int64_t item = next++; item < items; item = next++) work(worker, item);
  });
}

// Each group from input to output by one thread.
void run_groups(const EncoderKernels& kernels, const EncoderProblem& p, std::vector<Group>& groups,
                std::int64_t threads, const Parallel& pool) {
  // The longest first, so that no thread is left alone with one.
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.rows > b.rows; });
  std::int64_t head_tiles = 0, longest = 0;
  std::size_t sequences = 0;
  for (const Group& group : groups) {
    head_tiles = std::max(head_tiles, group.head_tiles);
    longest = std::max(longest, group.longest);
    sequences = std::max(sequences, group.sequences.size());
  }
  const auto count = static_cast<std::int64_t>(groups.size());
  std::vector<EncoderRun> runs(static_cast<std::size_t>(std::min(threads, count)));
  std::vector<EncoderScratch> scratches(runs.size());
  const auto carve = [&](std::uint8_t* memory) {
    Carver carver(memory);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      runs[i] = carve_run(carver, p, groups[0].rows, head_tiles, static_cast<std::int64_t>(sequences));
      scratches[i] = carve_scratch(carver, p, kernels.rows.most, kernels.rows.step, longest, groups[0].rows);
    }
    return carver.used();
  };
  const auto memory = make_workspace(carve(nullptr));
  carve(memory.get());
  share_out(count, threads, pool, [&](std::size_t worker, std::int64_t item) {
    EncoderRun& run = runs[worker];
    const EncoderScratch& scratch = scratches[worker];
    set_group(run, groups[static_cast<std::size_t>(item)]);
    if (scratch.received != nullptr) std::fill_n(scratch.received, run.rows, 0);
    for_rows(run.rows, kernels.rows.most, [&](auto... rows) { kernels.project(run, scratch, rows...); });
    for (std::int64_t i = 0; i < run.sequence_count; ++i) {
      for (std::int64_t head = 0; head < p.layer->heads; ++head) kernels.pack_head(run, run.sequences[i], head);
    }
    for_rows(run.rows, kernels.rows.most, [&](auto... rows) { kernels.finish(run, scratch, rows...); });
    if (scratch.received != nullptr) write_significance(run, &scratch, 1);
  });
}

// All threads at a group, step by step.
void run_steps(const EncoderKernels& kernels, const EncoderProblem& p, const Group& group, std::int64_t threads,
               const Parallel& pool) {
  const RowsOfTask& rows = kernels.rows;
  const std::int64_t tasks = threads * ceil_div(group.rows, threads * rows.most);
  const std::int64_t step = clamp(ceil_div(group.rows, tasks), rows.least, rows.most);
  const std::int64_t items = ceil_div(group.rows, step);
  EncoderRun run{};
  std::vector<EncoderScratch> scratches(static_cast<std::size_t>(std::min(threads, items)));
  const auto carve = [&](std::uint8_t* memory) {
    Carver carver(memory);
    run = carve_run(carver, p, group.rows, group.head_tiles, static_cast<std::int64_t>(group.sequences.size()));
    for (EncoderScratch& each : scratches) each = carve_scratch(carver, p, step, rows.step, group.longest, group.rows);
    return carver.used();
  };
  const auto memory = make_workspace(carve(nullptr));
  carve(memory.get());
  set_group(run, group);
  if (p.significance != nullptr) {
    for (const EncoderScratch& each : scratches) std::fill_n(each.received, run.rows, 0);
  }
  const auto on_rows = [&](const auto& work) {
    share_out(items, threads, pool, [&](std::size_t worker, std::int64_t item) {
      work(run, scratches[worker], item * step, std::min(run.rows, (item + 1) * step));
    });
  };
  on_rows(kernels.project);
  const std::int64_t heads = p.layer->heads;
  pool.for_each(static_cast<std::size_t>(run.sequence_count * heads), [&](std::size_t index) {
    const auto at = static_cast<std::int64_t>(index);
    kernels.pack_head(run, run.sequences[at / heads], at % heads);
  });
  on_rows(kernels.finish);
  if (p.significance != nullptr) write_significance(run, scratches.data(), scratches.size());
}

}  // namespace

const char* encoder_layer(const EncoderProblem& p, Isa isa, const Parallel& pool) {
  const EncoderKernels& kernels = best_kernels<EncoderKernels>(isa);
  const Tokens tokens = find_tokens(p);
  clear_others(p, tokens.rows);
  if (tokens.rows.empty()) return kernels.isa;
  const std::int64_t heads = p.layer->heads, threads = most_threads();
  std::vector<Group> groups = make_groups(tokens, heads, kGroupRows);
  if (static_cast<std::int64_t>(groups.size()) >= threads * kGroupsOfThread) {
    run_groups(kernels, p, groups, threads, pool);
  } else {
    run_steps(kernels, p, make_groups(tokens, heads, static_cast<std::int64_t>(tokens.rows.size()))[0], threads, pool);
  }
  return kernels.isa;
}

}  // namespace onnxpress
