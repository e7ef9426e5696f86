#include "kernels/matmul_int8.h"

#include <algorithm>
#include <cmath>

#include "kernels/kernel_table.h"
#include "kernels/matmul_int8_kernels.h"
#include "kernels/matmul_int8_split_k.h"
#include "kernels/tasks.h"
#include "kernels/workspace.h"

namespace onnxpress {
namespace {

const Int8Kernels& kernels_for(Isa isa, std::int64_t rows) {
  return *find_kernels<Int8Kernels>(isa, [&](const Int8Kernels& kernels) { return rows >= kernels.min_rows; });
}

// An odd number of cache lines: rows whose distance is a power of two would share a few sets of the L1 cache.
std::int64_t row_bytes(const Int8Weight& w, const Int8Kernels& kernels) {
  return kernels.in_tiles || w.padded_k / 64 % 2 != 0 ? w.padded_k : w.padded_k + 64;
}

Int8Rows make_rows(const Int8Problem& p, const Int8Kernels& kernels, std::uint8_t* workspace) {
  const std::int64_t bytes = row_bytes(*p.weight, kernels);
  const std::int64_t codes = ceil_div(p.M, kernels.row_step) * kernels.row_step * bytes;
  return {workspace,        reinterpret_cast<std::int32_t*>(workspace + codes), bytes, p.weight->padded_k,
          kernels.in_tiles, p.input.zero_point + (p.input.is_signed ? 128 : 0)};
}

// Rows that stay in L2 together with some tiles, and whole groups of tiles, as many as the kernel can stream.
Grain grain_of(const Int8Problem& p, const Int8Kernels& kernels) {
  constexpr std::int64_t kBytesOfRows = 1 << 19, kGroup = 4;
  const Int8Weight& w = *p.weight;
  const std::int64_t steps = std::max<std::int64_t>(kBytesOfRows / (w.padded_k * kernels.row_step), 1);
  const std::int64_t rows = steps * kernels.row_step;
  const std::int64_t group = std::min(p.M, rows) * w.padded_k * kTile * kGroup;
  return {clamp(ceil_div(kernels.work_per_task, group), 1, w.tiles) * kGroup, kernels.row_step, rows};
}

}  // namespace

Int8Dots int8_dots(Isa isa) { return best_kernels<Int8Kernels>(isa).dots; }

Int8Problem rows_of(const Int8Problem& p, std::int64_t begin, std::int64_t rows) {
  const std::int64_t in = begin * p.weight->K, out = begin * p.weight->N;
  Int8Problem part = p;
  part.M = rows;
  if (p.floats != nullptr) part.floats += in;
  if (p.codes != nullptr) part.codes += in;
  if (p.floats_out != nullptr) part.floats_out += out;
  if (p.codes_out != nullptr) part.codes_out += out;
  return part;
}

const char* matmul_int8(const Int8Problem& p, Isa isa, const Parallel& pool) {
  const Int8Kernels& kernels = kernels_for(isa, p.M);
  const Int8Weight& w = *p.weight;
  if (p.M == 0 || w.N == 0) return kernels.isa;
  if (w.is_long) return multiply_split_k(p, isa, pool);
  const Sequential alone;
  const Parallel& parallel = p.M * w.N * w.K < 2 * kernels.work_per_task ? static_cast<const Parallel&>(alone) : pool;

  const std::int64_t bytes = row_bytes(w, kernels) + std::int64_t{sizeof(std::int32_t)};
  const std::int64_t chunk_rows = rows_per_chunk(p.M, bytes, grain_of(p, kernels).max_rows);
  const auto workspace =
      make_workspace(static_cast<std::size_t>(ceil_div(chunk_rows, kernels.row_step) * kernels.row_step * bytes));
  for (std::int64_t begin = 0; begin < p.M; begin += chunk_rows) {
    const Int8Problem part = rows_of(p, begin, std::min(chunk_rows, p.M - begin));
    const Int8Rows rows = make_rows(part, kernels, workspace.get());
    for_each_row(part.M, w.padded_k, parallel, [&](std::int64_t row) { kernels.load_row(part, rows, row); });
    for_each_task(part.M, w.tiles, grain_of(part, kernels), parallel,
                  [&](auto... task) { kernels.multiply(part, rows, task...); });
  }
  return kernels.isa;
}

Int8Format dynamic_format(const float* values, std::int64_t count, Isa isa, const Parallel& pool) {
  const Int8Kernels& kernels = kernels_for(isa, 0);
  constexpr std::int64_t kMaxTasks = 64;
  const std::int64_t size = std::max<std::int64_t>(ceil_div(count, kMaxTasks), kWorkPerTask / 16);
  Range ranges[kMaxTasks] = {};
  pool.for_each(static_cast<std::size_t>(ceil_div(count, size)), [&](std::size_t task) {
    const std::int64_t begin = static_cast<std::int64_t>(task) * size;
    ranges[task] = kernels.range(values + begin, std::min(size, count - begin));
  });
  Range range{0, 0};
  for (const Range& part : ranges) range = {std::min(range.low, part.low), std::max(range.high, part.high)};

  Int8Format format;
  if (range.high != range.low) format.scale = (range.high - range.low) / 255.0f;
  // Written so that infinities give what ONNX Runtime gives.
  const float zero_point = std::max(0.0f, std::min(255.0f, 0.0f - range.low / format.scale));
  format.zero_point = static_cast<std::int32_t>(std::nearbyint(zero_point));
  return format;
}

}  // namespace onnxpress
