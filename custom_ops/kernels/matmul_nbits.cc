#include "kernels/matmul_nbits.h"

#include <algorithm>

#include "kernels/matmul_nbits_kernels.h"
#include "kernels/pieces.h"

namespace onnxpress {
namespace {

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

// Whole groups of tiles, so that every piece streams as many of them as the kernel can; the codes of a piece stay in
// L2.
std::int64_t tiles_to_stream(const NBitsWeight& w) {
  const std::int64_t group = 4;
  return clamp(ceil_div(kPieceOfWork, w.padded_k * kTile * group), 1, w.tiles) * group;
}

// work(first_tile, tiles, begin, end) for pieces of the product; what follows the sums is done while they are in the
// cache.
template <class Work>
void for_each_piece(const NBitsProblem& p, const NBitsKernels& kernels, std::int64_t tiles, const Parallel& parallel,
                    const Work& work) {
  split(p.M, p.weight->tiles, {tiles}, parallel,
        [&](std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
          work(first, count, begin, end);
          if (p.activation != Activation::kNone || p.gate != nullptr) kernels.activate(p, first, count, begin, end);
        });
}

void multiply_floats(const NBitsProblem& p, const NBitsKernels& kernels, const Parallel& parallel) {
  const int bits = p.weight->bits;
  if (p.M == 1) {
    for_each_piece(p, kernels, tiles_to_stream(*p.weight), parallel,
                   [&](std::int64_t tile, std::int64_t tiles, auto...) { kernels.row_float[bits](p, tile, tiles); });
    return;
  }
  for_each_piece(p, kernels, kernels.panel_tiles, parallel,
                 [&](std::int64_t tile, std::int64_t, std::int64_t begin, std::int64_t end) {
                   kernels.panel_float[bits](p, tile, begin, end);
                 });
}

void multiply_bfloat16(const NBitsProblem& p, const BFloat16Kernels& bfloat16, const NBitsKernels& kernels,
                       const Parallel& parallel) {
  const int bits = p.weight->bits;
  const BFloat16Rows rows = bfloat16_rows(p);
  for_each_row(p.M, p.weight->padded_k, parallel, [&](std::int64_t row) { bfloat16.round_row(p, rows, row); });
  if (p.M == 1) {
    for_each_piece(p, kernels, tiles_to_stream(*p.weight), parallel,
                   [&](std::int64_t tile, std::int64_t tiles, auto...) { bfloat16.row[bits](p, rows, tile, tiles); });
    return;
  }
  for_each_piece(p, kernels, bfloat16.panel_tiles, parallel,
                 [&](std::int64_t tile, std::int64_t, std::int64_t begin, std::int64_t end) {
                   bfloat16.panel[bits](p, rows, tile, begin, end);
                 });
}

void multiply_int8(const NBitsProblem& p, const NBitsKernels& kernels, const Parallel& parallel) {
  const NBitsWeight& w = *p.weight;
  const QuantizedRows rows = quantized_rows(p);
  for_each_row(p.M, w.padded_k, parallel, [&](std::int64_t row) { kernels.quantize_row(p, rows, row); });
  for_each_piece(p, kernels, tiles_to_stream(w), parallel,
                 [&](std::int64_t tile, std::int64_t tiles, std::int64_t begin, std::int64_t end) {
                   kernels.stream_int8[w.bits](p, rows, tile, tiles, begin, end);
                 });
}

}  // namespace

const NBitsKernels& nbits_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512Vnni) return nbits_kernels_avx512vnni();
  if (isa >= Isa::kAvx2) return nbits_kernels_avx2();
#endif
  (void)isa;
  return nbits_kernels_scalar();
}

const BFloat16Kernels* bfloat16_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Bf16) return &bfloat16_kernels_avx512bf16();
#endif
  (void)isa;
  return nullptr;
}

const char* matmul_nbits(const NBitsProblem& p, Compute compute, Isa isa, const Parallel& pool) {
  const NBitsKernels& kernels = nbits_kernels(isa);
  const BFloat16Kernels* bfloat16 = compute == Compute::kBFloat16 ? bfloat16_kernels(isa) : nullptr;
  const char* ran = bfloat16 != nullptr ? bfloat16->isa : kernels.isa;
  const NBitsWeight& w = *p.weight;
  if (p.M == 0 || w.N == 0) return ran;
  const Sequential alone;
  const Parallel& parallel = p.M * w.N * w.K < kWorthSplitting ? static_cast<const Parallel&>(alone) : pool;

  if (compute == Compute::kInt8) {
    multiply_int8(p, kernels, parallel);
  } else if (bfloat16 != nullptr) {
    multiply_bfloat16(p, *bfloat16, kernels, parallel);
  } else {
    multiply_floats(p, kernels, parallel);
  }
  return ran;
}

void convert(const std::uint16_t* halves, float* floats, std::int64_t count, Isa isa) {
  nbits_kernels(isa).to_float(halves, floats, count);
}

void convert(const float* floats, std::uint16_t* halves, std::int64_t count, Isa isa) {
  nbits_kernels(isa).to_half(floats, halves, count);
}

}  // namespace onnxpress
