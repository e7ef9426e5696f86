#include "kernels/cached_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cached_attention_kernels.h"
#include "kernels/kernel_table.h"
#include "kernels/tasks.h"
#include "kernels/workspace.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kCopiedAtOnce = 1 << 15;  // numbers of a task
constexpr std::int64_t kStretch = 256;           // keys of a task where there are few rows of queries
constexpr std::int64_t kFewTasks = 16;

std::size_t bytes_of(std::int64_t numbers) { return static_cast<std::size_t>(numbers) * sizeof(float); }

// `count` tasks, on other threads only if that is worth waking them.
template <class Task>
void run(const Parallel& parallel, std::int64_t count, std::int64_t work, const Task& task) {
  const Sequential alone;
  const Parallel& chosen = work < kMinParallelWork ? alone : parallel;
  if (count > 0) chosen.for_each(static_cast<std::size_t>(count), [&](std::size_t i) { task(std::int64_t(i)); });
}

void normalize(const HeadNorm& norm, const float* x, std::int64_t count, float* out) {
  constexpr std::int64_t kLanes = 16;  // sums side by side do not wait for each other
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
  }
  for (; i < count; ++i) lanes[0] += x[i] * x[i];
  float squares = 0;
  for (float lane : lanes) squares += lane;
  const float factor = 1 / std::sqrt(squares / static_cast<float>(count) + norm.epsilon);
  for (i = 0; i < count; ++i) out[i] = x[i] * factor * norm.scale[i];
}

// x of a head, normalized, rotated and times `factor`.
void prepare(const CachedAttention& a, const HeadNorm& norm, const float* x, std::int64_t row, std::int64_t token,
             float factor, float* out) {
  float normalized[kMaxHeadSize];
  if (norm.scale != nullptr) {
    normalize(norm, x, a.head_size, normalized);
    x = normalized;
  }
  const Rotation& rotation = a.rotation;
  const std::int64_t half = rotation.size / 2;
  for (std::int64_t i = rotation.size; i < a.head_size; ++i) out[i] = x[i] * factor;
  if (half == 0) return;
  const std::int64_t at = rotation.positions != nullptr
                              ? rotation.positions[row * std::max(a.tokens, a.new_keys) + token]
                              : a.kept[row] + token;
  const float *c = rotation.cosines + at * half, *s = rotation.sines + at * half;
  const std::int64_t step = rotation.interleaved ? 2 : 1, other = rotation.interleaved ? 1 : half;
  for (std::int64_t i = 0; i < half; ++i) {
    const float one = x[i * step], two = x[i * step + other];
    out[i * step] = (one * c[i] - two * s[i]) * factor;
    out[i * step + other] = (two * c[i] + one * s[i]) * factor;
  }
}

// Keys or values of a head of the cache: tokens [begin, end) of it. What is kept stays where past and present are the
// same memory.
template <class Store>
void keep_tokens(const CachedAttention& a, std::int64_t row, std::int64_t head, std::int64_t begin, std::int64_t end,
                 const float* past, float* present, const Store& store) {
  const std::int64_t width = a.head_size, kept = a.kept[row], of_head = row * a.kv_heads + head;
  float* out = present + of_head * a.present_size * width;
  const std::int64_t old_end = std::min(end, kept), rest = std::max(begin, kept + a.new_keys);
  if (past != present && begin < old_end) {
    const float* from = past + (of_head * a.past_size + begin) * width;
    std::memcpy(out + begin * width, from, bytes_of((old_end - begin) * width));
  }
  for (std::int64_t at = std::max(begin, kept); at < std::min(end, kept + a.new_keys); ++at) {
    store(at - kept, (row * a.new_keys + at - kept) * a.key_stride + head * width, out + at * width);
  }
  if (past != present && rest < end) std::memset(out + rest * width, 0, bytes_of((end - rest) * width));
}

void keep_tokens(const CachedAttention& a, std::int64_t row, std::int64_t head, std::int64_t begin, std::int64_t end) {
  keep_tokens(
      a, row, head, begin, end, a.past_key, a.present_key,
      [&](std::int64_t token, std::int64_t at, float* out) { prepare(a, a.key_norm, a.key + at, row, token, 1, out); });
  keep_tokens(a, row, head, begin, end, a.past_value, a.present_value, [&](std::int64_t, std::int64_t at, float* out) {
    std::memcpy(out, a.value + at, bytes_of(a.head_size));
  });
}

void update_cache(const CachedAttention& a, const Parallel& parallel) {
  std::int64_t first = 0, end = a.present_size;
  if (a.past_key == a.present_key && a.past_value == a.present_value) {
    first = *std::min_element(a.kept, a.kept + a.batch);
    end = *std::max_element(a.kept, a.kept + a.batch) + a.new_keys;
  }
  const std::int64_t part = clamp(kCopiedAtOnce / a.head_size, 1, std::max<std::int64_t>(end - first, 1));
  const std::int64_t parts = ceil_div(end - first, part), heads = a.batch * a.kv_heads;
  run(parallel, heads * parts, heads * (end - first) * a.head_size * 4, [&](std::int64_t task) {
    const std::int64_t head = task / parts, from = first + task % parts * part;
    keep_tokens(a, head / a.kv_heads, head % a.kv_heads, from, std::min(from + part, end));
  });
}

// How work is divided. A task has some tokens of some heads of a group, and a stretch of keys.
struct Division {
  std::int64_t heads, head_parts;     // query heads of a task
  std::int64_t tokens, token_parts;   // tokens of a task
  std::int64_t stretch, stretches;    // keys
  std::int64_t tasks_of_keys, tasks;  // those of one stretch, and all
  bool keeps_tokens;  // each stretch of a head has one task, which also puts it into the cache, and reads it there

  std::int64_t rows() const { return heads * tokens; }
};

Division divide(const CachedAttention& a, const AttentionKernels& kernels) {
  Division d;
  const std::int64_t group = a.heads / a.kv_heads;
  d.head_parts = ceil_div(group, kernels.rows);
  d.heads = ceil_div(group, d.head_parts);
  d.tokens = clamp(kernels.rows / d.heads, 1, a.tokens);
  d.token_parts = ceil_div(a.tokens, d.tokens);
  d.tasks_of_keys = a.batch * a.kv_heads * d.head_parts * d.token_parts;
  const std::int64_t keys = std::max<std::int64_t>(*std::max_element(a.total, a.total + a.batch), 1);
  d.keeps_tokens = kernels.pack == nullptr && d.head_parts * d.token_parts == 1;
  d.stretch = d.keeps_tokens || d.tasks_of_keys < kFewTasks ? kStretch : keys;
  d.stretches = ceil_div(keys, d.stretch);
  d.tasks = d.tasks_of_keys * d.stretches;
  return d;
}

// The rows of a task.
struct Part {
  std::int64_t row, kv_head, first_head, heads, first_token, tokens;

  Part(const CachedAttention& a, const Division& d, std::int64_t index) {
    // The last tokens, which see most keys, come first.
    first_token = (d.token_parts - 1 - index % d.token_parts) * d.tokens;
    index /= d.token_parts;
    const std::int64_t group = a.heads / a.kv_heads, begin = index % d.head_parts * d.heads;
    index /= d.head_parts;
    kv_head = index % a.kv_heads;
    row = index / a.kv_heads;
    first_head = kv_head * group + begin;
    heads = std::min(d.heads, group - begin);
    tokens = std::min(d.tokens, a.tokens - first_token);
  }

  std::int64_t rows() const { return heads * tokens; }
  std::int64_t head(std::int64_t r) const { return first_head + r % heads; }
  std::int64_t token(std::int64_t r) const { return first_token + r / heads; }
};

// What a stretch of keys gives rows of queries.
struct Sums {
  float *peaks, *totals, *sums;
};

Sums sums_of(float* memory, std::int64_t rows) { return {memory, memory + rows, memory + 2 * rows}; }

// Keys and values as kernels want them, if they do.
struct PackedCache {
  Aligned<std::uint8_t> memory;
  std::uint16_t *keys = nullptr, *values = nullptr;
  std::int64_t of_head = 0;  // numbers
};

PackedCache pack_cache(const CachedAttention& a, const AttentionKernels& kernels, const Parallel& parallel) {
  const std::int64_t keys = *std::max_element(a.total, a.total + a.batch), parts = ceil_div(keys, kPackedKeys);
  const std::int64_t size = packed_size(a.head_size), heads = a.batch * a.kv_heads, numbers = heads * parts * size;
  PackedCache packed{make_workspace(static_cast<std::size_t>(2 * numbers) * sizeof(std::uint16_t))};
  packed.keys = reinterpret_cast<std::uint16_t*>(packed.memory.get());
  packed.values = packed.keys + numbers;
  packed.of_head = parts * size;
  run(parallel, heads * parts, heads * keys * a.head_size * 4, [&](std::int64_t task) {
    const std::int64_t head = task / parts, key = task % parts * kPackedKeys;
    const std::int64_t at = (head * a.present_size + key) * a.head_size;
    kernels.pack(a.present_key + at, a.present_value + at, std::min(kPackedKeys, a.total[head / a.kv_heads] - key),
                 a.head_size, packed.keys + task * size, packed.values + task * size);
  });
  return packed;
}

void attend(const CachedAttention& a, const AttentionKernels& kernels, const PackedCache& packed, const Part& part,
            std::int64_t begin, std::int64_t end, const Sums& out) {
  alignas(64) float queries[kAttentionRows * kMaxHeadSize];
  const std::int64_t width = a.head_size, of_head = (part.row * a.kv_heads + part.kv_head) * a.present_size * width;
  AttentionTile tile;
  tile.rows = part.rows();
  tile.head_size = width;
  tile.queries = queries;
  tile.keys = a.present_key + of_head;
  tile.values = a.present_value + of_head;
  tile.key_tiles = packed.keys + (part.row * a.kv_heads + part.kv_head) * packed.of_head;
  tile.value_tiles = packed.values + (part.row * a.kv_heads + part.kv_head) * packed.of_head;
  tile.softcap = a.softcap;
  tile.peaks = out.peaks;
  tile.totals = out.totals;
  tile.sums = out.sums;
  tile.begin = end;
  tile.end = begin;
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    const std::int64_t token = part.token(r), head = part.head(r);
    const float* query = a.query + (part.row * a.tokens + token) * a.query_stride + head * width;
    prepare(a, a.query_norm, query, part.row, token, a.scale, queries + r * width);
    // Tokens behind the end of a row that is padded on the right see all of it.
    tile.last[r] = a.causal ? std::min(a.kept[part.row] + token + 1, a.total[part.row]) : a.total[part.row];
    tile.first[r] = a.window > 0 ? std::max<std::int64_t>(tile.last[r] - a.window, 0) : 0;
    const ScoreBias& bias = a.bias;
    const std::int64_t at = part.row * bias.batch_stride + head * bias.head_stride + token * bias.token_stride;
    tile.bias[r] = bias.values != nullptr ? bias.values + at : nullptr;
    tile.begin = std::min(tile.begin, std::max(begin, tile.first[r]));
    tile.end = std::max(tile.end, std::min(end, tile.last[r]));
  }
  kernels.attend(tile);
}

// The output of a part from the sums of all stretches.
void finish(const CachedAttention& a, const Part& part, const float* memory, std::int64_t size, std::int64_t capacity,
            std::int64_t stretches) {
  const std::int64_t width = a.head_size;
  for (std::int64_t r = 0; r < part.rows(); ++r) {
    const std::int64_t head = part.head(r);
    const float sink = a.sinks != nullptr ? a.sinks[head] : 0.0f;
    float peak = memory[r];
    for (std::int64_t i = 1; i < stretches; ++i) peak = std::max(peak, memory[i * size + r]);
    if (a.has_sink) peak = std::max(peak, sink);
    float total = a.has_sink ? std::exp(sink - peak) : 0.0f;
    float* y = a.output + ((part.row * a.tokens + part.token(r)) * a.heads + head) * width;
    for (std::int64_t i = 0; i < stretches; ++i) {
      const float *of_stretch = memory + i * size, *sums = of_stretch + 2 * capacity + r * width;
      const float factor = of_stretch[r] == peak ? 1.0f : std::exp(of_stretch[r] - peak);
      total += factor * of_stretch[capacity + r];
      for (std::int64_t j = 0; j < width; ++j) y[j] = i == 0 ? factor * sums[j] : y[j] + factor * sums[j];
    }
    const float inverse = 1 / total;
    for (std::int64_t j = 0; j < width; ++j) y[j] *= inverse;
  }
}

}  // namespace

bool is_attention_vectorized(Isa isa) {
  return &best_kernels<AttentionKernels>(isa) != &best_kernels<AttentionKernels>(Isa{});
}

const char* cached_attention(const CachedAttention& a, Isa isa, const Parallel& parallel) {
  const std::int64_t rows = a.kv_heads > 0 ? a.tokens * (a.heads / a.kv_heads) : 0;
  const AttentionKernels& kernels =
      *find_kernels<AttentionKernels>(isa, [&](const AttentionKernels& each) { return rows >= each.min_rows; });
  if (a.batch == 0) return kernels.isa;
  if (a.tokens == 0) {
    update_cache(a, parallel);
    return kernels.isa;
  }
  if (*std::max_element(a.total, a.total + a.batch) == 0) {
    std::fill_n(a.output, a.batch * a.tokens * a.heads * a.head_size, 0.0f);
    return kernels.isa;
  }
  const Division d = divide(a, kernels);
  if (!d.keeps_tokens) update_cache(a, parallel);
  const PackedCache packed = kernels.pack != nullptr ? pack_cache(a, kernels, parallel) : PackedCache{};
  const std::int64_t size = d.rows() * (a.head_size + 2), keys = std::min(d.stretch * d.stretches, a.present_size);
  const std::int64_t copied = a.past_key == a.present_key ? 0 : a.batch * a.kv_heads * a.present_size * 2;
  const std::int64_t work = (a.batch * a.heads * a.tokens * keys + copied) * a.head_size * 2;
  const auto sum_up = [&](std::int64_t task, float* memory) {
    const Part part(a, d, task / d.stretches);
    const std::int64_t stretch = task % d.stretches, begin = stretch * d.stretch, end = begin + d.stretch;
    if (d.keeps_tokens) {
      const bool is_last = stretch == d.stretches - 1;
      keep_tokens(a, part.row, part.kv_head, begin, is_last ? a.present_size : std::min(end, a.present_size));
    }
    attend(a, kernels, packed, part, begin, end, sums_of(memory, d.rows()));
  };
  if (d.stretches == 1) {
    run(parallel, d.tasks, work, [&](std::int64_t task) {
      alignas(64) float memory[kAttentionRows * (kMaxHeadSize + 2)];
      sum_up(task, memory);
      finish(a, Part(a, d, task), memory, size, d.rows(), 1);
    });
    return kernels.isa;
  }
  const auto workspace = make_workspace(bytes_of(d.tasks * size));
  float* memory = reinterpret_cast<float*>(workspace.get());
  run(parallel, d.tasks, work, [&](std::int64_t task) { sum_up(task, memory + task * size); });
  run(parallel, d.tasks_of_keys, d.tasks * size,
      [&](std::int64_t i) { finish(a, Part(a, d, i), memory + i * d.stretches * size, size, d.rows(), d.stretches); });
  return kernels.isa;
}

}  // namespace onnxpress
