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

// Room for the int8 rows of one problem, kept by each calling thread.
QuantizedRows rows_buffer(const NBitsProblem& p) {
  static thread_local Aligned<std::uint8_t> memory;
  static thread_local std::size_t capacity = 0;
  const NBitsWeight& w = *p.weight;
  const auto codes = static_cast<std::size_t>(p.M * w.padded_k);
  const auto numbers = static_cast<std::size_t>(p.M * w.blocks);
  const std::size_t bytes = codes + numbers * (sizeof(float) + sizeof(std::int32_t));
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory = make_aligned<std::uint8_t>(bytes);
    capacity = bytes;
  }
  std::uint8_t* at = memory.get();
  return {reinterpret_cast<std::int8_t*>(at), reinterpret_cast<float*>(at + codes),
          reinterpret_cast<std::int32_t*>(at + codes + numbers * sizeof(float))};
}

// Whole groups of tiles, so that every piece streams as many of them as the kernel can; the codes of a piece stay in
// L2.
std::int64_t tiles_to_stream(const NBitsWeight& w) {
  const std::int64_t group = 4;
  return clamp(ceil_div(kPieceOfWork, w.padded_k * kTile * group), 1, w.tiles) * group;
}

// work(first_tile, tiles, begin, end) for stretches of tiles times stretches of rows; what follows the sums is done
// while they are in the cache.
template <class Work>
void split(const NBitsProblem& p, const NBitsKernels& kernels, std::int64_t tiles, const Parallel& parallel,
           const Work& work) {
  const NBitsWeight& w = *p.weight;
  const std::int64_t columns = ceil_div(w.tiles, tiles);
  // Rows are split only where there are few tiles: each piece unpacks its part of the weight anew.
  const std::int64_t wanted = columns >= 8 ? 1 : ceil_div(8, columns);
  const std::int64_t rows = ceil_div(p.M, clamp(wanted, 1, ceil_div(p.M, 48)));
  const std::int64_t stretches = ceil_div(p.M, rows);
  parallel.for_each(static_cast<std::size_t>(columns * stretches), [&](std::size_t index) {
    const std::int64_t first = static_cast<std::int64_t>(index) / stretches * tiles;
    const std::int64_t count = std::min(tiles, w.tiles - first);
    const std::int64_t begin = static_cast<std::int64_t>(index) % stretches * rows;
    const std::int64_t end = std::min(p.M, begin + rows);
    work(first, count, begin, end);
    if (p.activation != Activation::kNone || p.gate != nullptr) kernels.activate(p, first, count, begin, end);
  });
}

void multiply_floats(const NBitsProblem& p, const NBitsKernels& kernels, const Parallel& parallel) {
  const int bits = p.weight->bits;
  if (p.M == 1) {
    split(p, kernels, tiles_to_stream(*p.weight), parallel,
          [&](std::int64_t tile, std::int64_t tiles, auto...) { kernels.row_float[bits](p, tile, tiles); });
    return;
  }
  split(p, kernels, kernels.panel_tiles, parallel,
        [&](std::int64_t tile, std::int64_t, std::int64_t begin, std::int64_t end) {
          kernels.panel_float[bits](p, tile, begin, end);
        });
}

void multiply_int8(const NBitsProblem& p, const NBitsKernels& kernels, const Parallel& parallel) {
  const NBitsWeight& w = *p.weight;
  const QuantizedRows rows = rows_buffer(p);
  const std::int64_t rows_a_piece = clamp(kPieceOfWork / 16 / w.padded_k, 1, p.M);
  parallel.for_each(static_cast<std::size_t>(ceil_div(p.M, rows_a_piece)), [&](std::size_t index) {
    const std::int64_t begin = static_cast<std::int64_t>(index) * rows_a_piece;
    const std::int64_t end = std::min(p.M, begin + rows_a_piece);
    for (std::int64_t row = begin; row < end; ++row) kernels.quantize_row(p, rows, row);
  });
  split(p, kernels, tiles_to_stream(w), parallel,
        [&](std::int64_t tile, std::int64_t tiles, std::int64_t begin, std::int64_t end) {
          kernels.stream_int8[w.bits](p, rows, tile, tiles, begin, end);
        });
}

}  // namespace

const NBitsKernels& nbits_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Vnni) return nbits_kernels_avx512vnni();
  if (isa == Isa::kAvx2) return nbits_kernels_avx2();
#endif
  (void)isa;
  return nbits_kernels_scalar();
}

const char* matmul_nbits(const NBitsProblem& p, Compute compute, Isa isa, const Parallel& pool) {
  const NBitsKernels& kernels = nbits_kernels(isa);
  const NBitsWeight& w = *p.weight;
  if (p.M == 0 || w.N == 0) return kernels.isa;
  const Sequential alone;
  const Parallel& parallel = p.M * w.N * w.K < kWorthSplitting ? static_cast<const Parallel&>(alone) : pool;

  if (compute == Compute::kFloat32) {
    multiply_floats(p, kernels, parallel);
  } else {
    multiply_int8(p, kernels, parallel);
  }
  return kernels.isa;
}

void convert(const std::uint16_t* halves, float* floats, std::int64_t count, Isa isa) {
  nbits_kernels(isa).to_float(halves, floats, count);
}

void convert(const float* floats, std::uint16_t* halves, std::int64_t count, Isa isa) {
  nbits_kernels(isa).to_half(floats, halves, count);
}

}  // namespace onnxpress
