#include "kernels/matmul_nbits.h"

#include <algorithm>

#include "kernels/kernel_table.h"
#include "kernels/matmul_nbits_kernels.h"
#include "kernels/tasks.h"
#include "kernels/workspace.h"

namespace onnxpress {
namespace {

// Bytes from a row to the next: an odd number of cache lines, as rows a power of two apart would meet in a few sets of
// L1.
std::int64_t row_bytes(std::int64_t bytes) { return (ceil_div(bytes, 64) | 1) * 64; }

QuantizedRows quantized_rows(const NBitsProblem& p, std::int64_t row_step, std::uint8_t* at) {
  const std::int64_t row = row_bytes(p.weight->padded_k), rows = p.M + row_step - 1;
  const std::int64_t codes = rows * row, scales = rows * p.weight->blocks * std::int64_t{sizeof(float)};
  return {reinterpret_cast<std::int8_t*>(at), reinterpret_cast<float*>(at + codes),
          reinterpret_cast<std::int32_t*>(at + codes + scales), row, rows};
}

BFloat16Rows bfloat16_rows(const NBitsProblem& p, std::int64_t row_step, std::uint8_t* at) {
  const std::int64_t row = row_bytes(p.weight->padded_k * 2), rows = p.M + row_step - 1;
  return {reinterpret_cast<std::uint16_t*>(at), reinterpret_cast<float*>(at + rows * row), row / 2, rows};
}

// Whole groups of tiles, so that every task streams as many of them as the kernel can; the codes of a task stay in
// L2. One row reads each code once: what is not in a cache comes in faster in longer streams.
constexpr std::int64_t kGroup = 4;

std::int64_t tiles_to_stream(const NBitsProblem& p) {
  constexpr std::int64_t kTasks = 8, kLongest = 4 * kWorkPerTask;
  const NBitsWeight& w = *p.weight;
  const std::int64_t tile = w.padded_k * kTile;
  const std::int64_t work = p.M == 1 ? clamp(w.tiles * tile / kTasks, kWorkPerTask, kLongest) : kWorkPerTask;
  return clamp(ceil_div(work, tile * kGroup), 1, w.tiles) * kGroup;
}

// One product on its way: `floats` are the kernels of the instruction set for what is no sum. Where rows are still to
// be normalized or two sums make one output, `whole` says so, and the product reads rows and leaves sums in memory
// between.
struct Job {
  const NBitsProblem& p;
  const NBitsProblem* whole;
  const NBitsFloatKernels& floats;
  const Parallel& parallel;

  bool joins() const { return whole != nullptr && whole->glu != Glu::kNone; }
  bool normalizes() const { return whole != nullptr && whole->norm.scale != nullptr; }
  // p.A is the memory between then.
  void normalize(std::int64_t row) const {
    const std::int64_t K = p.weight->K;
    if (normalizes()) floats.normalize_row(whole->A + row * K, whole->norm, K, const_cast<float*>(p.A) + row * K);
  }
};

// Rows of so many bytes stay in a cache while tile after tile of the weight meets them. Codes that are streamed meet
// rows in L2; a panel is unpacked anew for each task, which costs more than rows that come from L3.
constexpr std::int64_t kStreamedRows = 1 << 19, kPanelRows = 1 << 22;

std::int64_t rows_to_keep(std::int64_t row_bytes, std::int64_t bytes) {
  constexpr std::int64_t kRows = 48;  // a multiple of all groups of rows that kernels take
  return std::max<std::int64_t>(bytes / row_bytes / kRows, 1) * kRows;
}

// The same of a gated linear unit. A task has tiles of both halves, which it joins while they are in its cache: to
// fetch them from that of another thread costs as much as the product.
template <class Work>
void run_joined(const Job& job, const Grain& grain, const Work& work) {
  const NBitsProblem& p = job.p;
  const std::int64_t half = p.weight->N / 2;
  if (half % (grain.fixed ? kTile * grain.tiles : kTile) != 0) {
    for_each_task(p.M, p.weight->tiles, grain, job.parallel, work);
    for_each_row(p.M, p.weight->N, job.parallel,
                 [&](std::int64_t row) { job.floats.join_halves(p.Y, *job.whole, 0, half, row, row + 1); });
    return;
  }
  Grain of_half = grain;
  if (!grain.fixed) of_half.tiles = std::max<std::int64_t>(grain.tiles / 2 / kGroup, 1) * kGroup;
  for_each_task(p.M, half / kTile, of_half, job.parallel,
                [&](std::int64_t first, std::int64_t tiles, std::int64_t begin, std::int64_t end) {
                  work(first, tiles, begin, end);
                  work(first + half / kTile, tiles, begin, end);
                  job.floats.join_halves(p.Y, *job.whole, first * kTile, (first + tiles) * kTile, begin, end);
                });
}

// work(first_tile, tiles, begin, end) for tasks of the product; what follows the sums is done while they are in the
// cache.
template <class Work>
void run_tasks(const Job& job, const Grain& grain, const Work& work) {
  const NBitsProblem& p = job.p;
  if (job.joins()) return run_joined(job, grain, work);
  for_each_task(p.M, p.weight->tiles, grain, job.parallel,
                [&](std::int64_t first, std::int64_t tiles, std::int64_t begin, std::int64_t end) {
                  work(first, tiles, begin, end);
                  if (p.activation != Activation::kNone || p.gate != nullptr || p.addend != nullptr)
                    job.floats.activate(p, first, tiles, begin, end);
                });
}

void multiply_floats(const Job& job, const NBitsFloatProduct& product) {
  const NBitsProblem& p = job.p;
  if (job.normalizes()) {
    for_each_row(p.M, p.weight->K, job.parallel, [&](std::int64_t row) { job.normalize(row); });
  }
  if (p.M == 1) {
    run_tasks(job, {tiles_to_stream(p)},
              [&](std::int64_t tile, std::int64_t tiles, auto...) { product.row(p, tile, tiles); });
    return;
  }
  run_tasks(job, {product.panel_tiles, 1, rows_to_keep(p.weight->K * 4, kPanelRows), true},
            [&](std::int64_t tile, std::int64_t, std::int64_t begin, std::int64_t end) {
              product.panel(p, tile, begin, end);
            });
}

// How the rounded rows of a product lie: bytes of a row and of what belongs to it, how many rows are read from any on,
// and of how many a multiple is a chunk.
struct ChunkedRows {
  std::int64_t bytes, row_step, chunk_step;
};

NBitsProblem rows_of(const NBitsProblem& p, std::int64_t begin, std::int64_t rows) {
  const std::int64_t N = p.weight->N, outputs = p.glu == Glu::kNone ? N : N / 2;
  NBitsProblem part = p;
  part.M = rows;
  part.A += begin * p.weight->K;
  part.Y += begin * outputs;
  if (p.gate != nullptr) part.gate += begin * N;
  if (p.addend != nullptr) part.addend += begin * N;
  return part;
}

// work(job, workspace) for the rows in chunks, each a problem of its own.
template <class Work>
void for_each_chunk(const Job& job, const ChunkedRows& rows, const Work& work) {
  const NBitsProblem& p = job.p;
  const std::int64_t chunk_rows = rows_per_chunk(p.M, rows.bytes, rows.chunk_step);
  const auto workspace = make_workspace(static_cast<std::size_t>((chunk_rows + rows.row_step - 1) * rows.bytes));
  for (std::int64_t begin = 0; begin < p.M; begin += chunk_rows) {
    const std::int64_t count = std::min(chunk_rows, p.M - begin);
    const NBitsProblem part = rows_of(p, begin, count);
    const NBitsProblem whole = job.whole != nullptr ? rows_of(*job.whole, begin, count) : NBitsProblem{};
    work(Job{part, job.whole != nullptr ? &whole : nullptr, job.floats, job.parallel}, workspace.get());
  }
}

void multiply_bfloat16(const Job& whole, const NBitsBFloat16Product& product) {
  const NBitsWeight& w = *whole.p.weight;
  const std::int64_t bytes = row_bytes(w.padded_k * 2), kept = rows_to_keep(bytes, kPanelRows);
  const ChunkedRows chunked{bytes + w.blocks * std::int64_t{sizeof(float)}, product.row_step, kept};
  for_each_chunk(whole, chunked, [&](const Job& job, std::uint8_t* workspace) {
    const NBitsProblem& p = job.p;
    const BFloat16Rows rows = bfloat16_rows(p, product.row_step, workspace);
    for_each_row(p.M, w.padded_k, job.parallel, [&](std::int64_t row) {
      job.normalize(row);
      product.round_row(p, rows, row);
    });
    if (whole.p.M == 1) {
      run_tasks(job, {tiles_to_stream(p)},
                [&](std::int64_t tile, std::int64_t tiles, auto...) { product.row(p, rows, tile, tiles); });
      return;
    }
    run_tasks(job, {product.panel_tiles, product.row_step, kept, true},
              [&](std::int64_t tile, std::int64_t, std::int64_t begin, std::int64_t end) {
                product.panel(p, rows, tile, begin, end);
              });
  });
}

void multiply_int8(const Job& whole, const NBitsInt8Kernels& kernels) {
  const NBitsWeight& w = *whole.p.weight;
  const std::int64_t bytes = row_bytes(w.padded_k), kept = rows_to_keep(bytes, kStreamedRows);
  const ChunkedRows chunked{bytes + w.blocks * std::int64_t{sizeof(float) + sizeof(std::int32_t)}, kernels.row_step,
                            kept};
  for_each_chunk(whole, chunked, [&](const Job& job, std::uint8_t* workspace) {
    const NBitsProblem& p = job.p;
    const QuantizedRows rows = quantized_rows(p, kernels.row_step, workspace);
    for_each_row(p.M, w.padded_k, job.parallel, [&](std::int64_t row) {
      job.normalize(row);
      kernels.quantize_row(p, rows, row);
    });
    run_tasks(job, {tiles_to_stream(p), kernels.row_step, kept},
              [&](std::int64_t tile, std::int64_t tiles, std::int64_t begin, std::int64_t end) {
                kernels.stream[w.bits](p, rows, tile, tiles, begin, end);
              });
  });
}

bool meets(const NBitsProblem& p, const NBitsNeeds& needs) {
  return p.M >= needs.min_rows && p.weight->block_size % needs.block_multiple == 0;
}

const NBitsInt8Kernels& int8_kernels(const NBitsProblem& p, Isa isa) {
  return *find_kernels<NBitsInt8Kernels>(isa, [&](const auto& kernels) { return meets(p, kernels.needs); });
}

// The product of the best kernels that have one for the codes of the weight; null where there is none.
template <class Kernels>
auto find_product(const NBitsProblem& p, Isa isa) {
  const auto suits = [&](const auto& product) { return product.isa != nullptr && meets(p, product.needs); };
  const auto* kernels = find_kernels<Kernels>(isa, [&](const Kernels& k) { return suits(k.product(*p.weight)); });
  return kernels != nullptr ? &kernels->product(*p.weight) : nullptr;
}

// `whole` as in Job.
const char* multiply(const NBitsProblem& p, const NBitsProblem* whole, Compute compute, Isa isa, const Parallel& pool) {
  const Sequential alone;
  const bool small = p.M * p.weight->N * p.weight->K < kMinParallelWork;
  const Parallel& parallel = small ? static_cast<const Parallel&>(alone) : pool;
  const Job job{p, whole, best_kernels<NBitsFloatKernels>(isa), parallel};
  const auto run = [&](auto multiply, const auto& kernels) {
    if (p.M != 0 && p.weight->N != 0) multiply(job, kernels);
    return kernels.isa;
  };
  const bool is_integer = p.weight->kind == CodeKind::kInteger;
  if (compute == Compute::kInt8 && is_integer) return run(multiply_int8, int8_kernels(p, isa));
  const auto* bfloat16 =
      is_integer ? find_product<NBitsBFloat16Kernels>(p, isa) : find_product<MiniFloatBFloat16Kernels>(p, isa);
  if (compute == Compute::kBFloat16 && bfloat16 != nullptr) return run(multiply_bfloat16, *bfloat16);
  const auto* floats = is_integer ? find_product<NBitsFloatKernels>(p, isa) : find_product<MiniFloatKernels>(p, isa);
  return run(multiply_floats, *floats);
}

// What goes through memory of its own: rows that are normalized, and sums of which two make one output.
const char* multiply_in_chunks(const NBitsProblem& p, Compute compute, Isa isa, const Parallel& pool) {
  const std::int64_t K = p.weight->K, N = p.weight->N;
  const std::int64_t normalized = p.norm.scale != nullptr ? K : 0, sums = p.glu != Glu::kNone ? N : 0;
  const std::int64_t bytes = (normalized + sums) * std::int64_t{sizeof(float)};
  const EvenChunks chunks(p.M, bytes);
  const auto workspace = make_workspace(static_cast<std::size_t>(chunks.most() * bytes));
  auto* const a = reinterpret_cast<float*>(workspace.get());
  float* const y = a + chunks.most() * normalized;
  const char* ran = nullptr;
  chunks.for_each([&](std::int64_t begin, std::int64_t rows) {
    const NBitsProblem part = rows_of(p, begin, rows);
    NBitsProblem product = part;
    product.norm = {};
    product.glu = Glu::kNone;
    if (normalized != 0) product.A = a;
    if (sums != 0) {
      product.Y = y;
      product.activation = Activation::kNone;
    }
    ran = multiply(product, &part, compute, isa, pool);
  });
  return ran;
}

}  // namespace

const char* matmul_nbits(const NBitsProblem& p, Compute compute, Isa isa, const Parallel& pool) {
  if (p.M != 0 && (p.norm.scale != nullptr || p.glu != Glu::kNone)) return multiply_in_chunks(p, compute, isa, pool);
  return multiply(p, nullptr, compute, isa, pool);
}

bool is_nbits_vectorized(Isa isa) {
  return &best_kernels<NBitsFloatKernels>(isa) != &best_kernels<NBitsFloatKernels>(Isa{});
}

void convert(const std::uint16_t* halves, float* floats, std::int64_t count, Isa isa) {
  best_kernels<NBitsFloatKernels>(isa).to_float(halves, floats, count);
}

void convert(const float* floats, std::uint16_t* halves, std::int64_t count, Isa isa) {
  best_kernels<NBitsFloatKernels>(isa).to_half(floats, halves, count);
}

}  // namespace onnxpress
