#include "kernels/matmul_nbits.h"

#include <algorithm>

#include "kernels/matmul_nbits_kernels.h"

namespace onnxpress {
namespace {

// Below this many multiply-adds (some 4 us) waking a second thread costs more than it brings. Above, even one row
// gains: a weight that is not in the cache comes in at the bandwidth of two cores.
constexpr std::int64_t kWorthSplitting = 1 << 19;

// A piece of work must be large against the cost of fetching it (0.2 us), and small enough to balance the threads.
constexpr std::int64_t kPieceOfWork = 1 << 18;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) {
  return std::max(low, std::min(value, high));
}

// Room for the rounded rows of one problem, kept by each calling thread.
std::uint8_t* rows_buffer(std::size_t bytes) {
  static thread_local Aligned<std::uint8_t> memory;
  static thread_local std::size_t capacity = 0;
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory = make_aligned<std::uint8_t>(bytes);
    capacity = bytes;
  }
  return memory.get();
}

QuantizedRows quantized_rows(const NBitsProblem& p) {
  const auto codes = static_cast<std::size_t>(p.M * p.weight->padded_k);
  const auto numbers = static_cast<std::size_t>(p.M * p.weight->blocks);
  std::uint8_t* at = rows_buffer(codes + numbers * (sizeof(float) + sizeof(std::int32_t)));
  return {reinterpret_cast<std::int8_t*>(at), reinterpret_cast<float*>(at + codes),
          reinterpret_cast<std::int32_t*>(at + codes + numbers * sizeof(float))};
}

BFloat16Rows bfloat16_rows(const NBitsProblem& p) {
  const std::size_t values = static_cast<std::size_t>(p.M * p.weight->padded_k) * sizeof(std::uint16_t);
  std::uint8_t* at = rows_buffer(values + static_cast<std::size_t>(p.M * p.weight->blocks) * sizeof(float));
  return {reinterpret_cast<std::uint16_t*>(at), reinterpret_cast<float*>(at + values)};
}

// work(row) for all rows.
template <class Work>
void for_each_row(const NBitsProblem& p, const Parallel& parallel, const Work& work) {
  const std::int64_t rows_a_piece = clamp(kPieceOfWork / 16 / p.weight->padded_k, 1, p.M);
  parallel.for_each(static_cast<std::size_t>(ceil_div(p.M, rows_a_piece)), [&](std::size_t index) {
    const std::int64_t begin = static_cast<std::int64_t>(index) * rows_a_piece;
    const std::int64_t end = std::min(p.M, begin + rows_a_piece);
    for (std::int64_t row = begin; row < end; ++row) work(row);
  });
}

// Whole groups of tiles, so that every piece streams as many of them as the kernel can; the codes of a piece stay in
// L2.
std::int64_t tiles_to_stream(const NBitsWeight& w) {
  const std::int64_t group = 4;
  return clamp(ceil_div(kPieceOfWork, w.padded_k * kTile * group), 1, w.tiles) * group;
}

// work(first_tile, tiles, begin, end) for stretches of tiles times stretches of rows.
template <class Work>
void split(const NBitsProblem& p, std::int64_t tiles, const Parallel& parallel, const Work& work) {
  const NBitsWeight& w = *p.weight;
  const std::int64_t columns = ceil_div(w.tiles, tiles);
  // Rows are split only where there are few tiles: each piece unpacks its part of the weight anew.
  const std::int64_t wanted = columns >= 8 ? 1 : ceil_div(8, columns);
  const std::int64_t rows = ceil_div(p.M, clamp(wanted, 1, ceil_div(p.M, 48)));
  const std::int64_t stretches = ceil_div(p.M, rows);
  parallel.for_each(static_cast<std::size_t>(columns * stretches), [&](std::size_t index) {
    const std::int64_t first = static_cast<std::int64_t>(index) / stretches * tiles;
    const std::int64_t begin = static_cast<std::int64_t>(index) % stretches * rows;
    work(first, std::min(tiles, w.tiles - first), begin, std::min(p.M, begin + rows));
  });
}

void multiply_floats(const NBitsProblem& p, const NBitsFloatKernels& kernels, const Parallel& parallel) {
  const int bits = p.weight->bits;
  if (p.M == 1) {
    split(p, tiles_to_stream(*p.weight), parallel,
          [&](std::int64_t tile, std::int64_t tiles, auto...) { kernels.row[bits](p, tile, tiles); });
    return;
  }
  split(p, kernels.panel_tiles, parallel, [&](std::int64_t tile, std::int64_t, std::int64_t begin, std::int64_t end) {
    kernels.panel[bits](p, tile, begin, end);
  });
}

void multiply_bfloat16(const NBitsProblem& p, const NBitsBFloat16Kernels& kernels, const Parallel& parallel) {
  const int bits = p.weight->bits;
  const BFloat16Rows rows = bfloat16_rows(p);
  for_each_row(p, parallel, [&](std::int64_t row) { kernels.round_row(p, rows, row); });
  if (p.M == 1) {
    split(p, tiles_to_stream(*p.weight), parallel,
          [&](std::int64_t tile, std::int64_t tiles, auto...) { kernels.row[bits](p, rows, tile, tiles); });
    return;
  }
  split(p, kernels.panel_tiles, parallel, [&](std::int64_t tile, std::int64_t, std::int64_t begin, std::int64_t end) {
    kernels.panel[bits](p, rows, tile, begin, end);
  });
}

void multiply_int8(const NBitsProblem& p, const NBitsInt8Kernels& kernels, const Parallel& parallel) {
  const NBitsWeight& w = *p.weight;
  const QuantizedRows rows = quantized_rows(p);
  for_each_row(p, parallel, [&](std::int64_t row) { kernels.quantize_row(p, rows, row); });
  split(p, tiles_to_stream(w), parallel,
        [&](std::int64_t tile, std::int64_t tiles, std::int64_t begin, std::int64_t end) {
          kernels.stream[w.bits](p, rows, tile, tiles, begin, end);
        });
}

}  // namespace

const NBitsInt8Kernels& nbits_int8(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512Vnni) return nbits_int8_avx512vnni();
  if (isa >= Isa::kAvxVnni) return nbits_int8_avxvnni();
  if (isa >= Isa::kAvx2) return nbits_int8_avx2();
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return nbits_int8_neon();
#endif
  (void)isa;
  return nbits_int8_scalar();
}

const NBitsFloatKernels& nbits_float(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512Vnni) return nbits_float_avx512vnni();
  if (isa >= Isa::kAvx2) return nbits_float_avx2();
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return nbits_float_neon();
#endif
  (void)isa;
  return nbits_float_scalar();
}

const NBitsBFloat16Kernels* nbits_bfloat16(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Bf16) return &nbits_bfloat16_avx512bf16();
#endif
  (void)isa;
  return nullptr;
}

const char* matmul_nbits(const NBitsProblem& p, Compute compute, Isa isa, const Parallel& pool) {
  const Sequential alone;
  const bool small = p.M * p.weight->N * p.weight->K < kWorthSplitting;
  const Parallel& parallel = small ? static_cast<const Parallel&>(alone) : pool;
  const auto run = [&](auto multiply, const auto& kernels) {
    if (p.M != 0 && p.weight->N != 0) multiply(p, kernels, parallel);
    return kernels.isa;
  };
  const NBitsBFloat16Kernels* bfloat16 = nbits_bfloat16(isa);
  if (compute == Compute::kInt8) return run(multiply_int8, nbits_int8(isa));
  if (compute == Compute::kBFloat16 && bfloat16 != nullptr) return run(multiply_bfloat16, *bfloat16);
  return run(multiply_floats, nbits_float(isa));
}

void convert(const std::uint16_t* halves, float* floats, std::int64_t count, Isa isa) {
  nbits_float(isa).to_float(halves, floats, count);
}

void convert(const float* floats, std::uint16_t* halves, std::int64_t count, Isa isa) {
  nbits_float(isa).to_half(floats, halves, count);
}

}  // namespace onnxpress
