#include "kernels/gather_nbits.h"

#include <algorithm>

#include "kernels/half.h"
#include "kernels/kernel_table.h"
#include "kernels/matmul_nbits_kernels.h"

namespace onnxpress {
namespace {

// Numbers of a task of work, some 5 us.
constexpr std::int64_t kWorkPerTask = 1 << 14;

// Numbers that become float16 at once, at most.
constexpr std::int64_t kChunk = 256;

int nibble(const std::uint8_t* packed, std::int64_t index) { return packed[index / 2] >> (index % 2 * 4) & 15; }

// What is subtracted from a code once the sign bit of both is flipped, which makes signed ones unsigned.
int offset_of(const NBitsTable& t, std::int64_t row, std::int64_t block, int sign) {
  if (t.zero_points == nullptr) return t.zero_point + sign;
  const std::int64_t at = row * t.zero_stride + block;
  return (t.bits == 4 ? nibble(t.zero_points, at) : t.zero_points[at]) ^ sign;
}

// Columns [begin, begin + count) of a row, all of one block.
void dequantize(const NBitsTable& t, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const std::int64_t block = begin / t.block_size, at = row * t.columns + begin;
  const std::int64_t scale_at = row * t.blocks() + block;
  const float scale = t.scales != nullptr ? t.scales[scale_at] : half_to_float(t.half_scales[scale_at]);
  const int sign = t.is_signed ? 1 << (t.bits - 1) : 0;
  const int offset = offset_of(t, row, block, sign);
  const auto value = [=](int code) { return static_cast<float>((code ^ sign) - offset) * scale; };
  if (t.bits == 8) {
    const std::uint8_t* codes = t.codes + at;
    for (std::int64_t i = 0; i < count; ++i) out[i] = value(codes[i]);
    return;
  }
  if (at % 2 != 0) {  // in the middle of a byte, where rows are odd
    for (std::int64_t i = 0; i < count; ++i) out[i] = value(nibble(t.codes, at + i));
    return;
  }
  const std::uint8_t* codes = t.codes + at / 2;
  for (std::int64_t i = 0; i < count / 2; ++i) {
    out[2 * i] = value(codes[i] & 15);
    out[2 * i + 1] = value(codes[i] >> 4);
  }
  if (count % 2 != 0) out[count - 1] = value(codes[count / 2] & 15);
}

void gather_row(const NBitsTable& t, std::int64_t row, float* out) {
  for (std::int64_t begin = 0; begin < t.columns; begin += t.block_size) {
    dequantize(t, row, begin, std::min(t.block_size, t.columns - begin), out + begin);
  }
}

void gather_row(const NBitsTable& t, std::int64_t row, std::uint16_t* out, const NBitsFloatKernels& kernels) {
  float chunk[kChunk];
  const std::int64_t step = std::min(t.block_size, kChunk);
  for (std::int64_t begin = 0; begin < t.columns; begin += step) {
    const std::int64_t count = std::min(step, t.columns - begin);
    dequantize(t, row, begin, count, chunk);
    kernels.to_half(chunk, out + begin, count);
  }
}

template <class Index>
void gather_any(const NBitsTable& t, const Index* indices, std::int64_t count, void* out, Isa isa,
                const Parallel& pool) {
  const NBitsFloatKernels& kernels = best_kernels<NBitsFloatKernels>(isa);
  const bool half = t.half_scales != nullptr;
  const std::int64_t bytes = t.columns * (half ? 2 : 4);
  const auto gather_one = [&](std::int64_t i) {
    std::uint8_t* to = static_cast<std::uint8_t*>(out) + i * bytes;
    const std::int64_t index = indices[i], row = index < 0 ? index + t.rows : index;
    if (half) {
      gather_row(t, row, reinterpret_cast<std::uint16_t*>(to), kernels);
    } else {
      gather_row(t, row, reinterpret_cast<float*>(to));
    }
  };
  const std::int64_t rows = std::max<std::int64_t>(1, kWorkPerTask / t.columns);
  pool.for_each(static_cast<std::size_t>((count + rows - 1) / rows), [&](std::size_t task) {
    const std::int64_t begin = static_cast<std::int64_t>(task) * rows;
    for (std::int64_t i = begin; i < std::min(count, begin + rows); ++i) gather_one(i);
  });
}

template <class Index>
std::int64_t find_any_outside(const NBitsTable& t, const Index* indices, std::int64_t count) {
  return std::find_if(indices, indices + count, [&](Index index) { return index < -t.rows || index >= t.rows; }) -
         indices;
}

}  // namespace

std::int64_t find_outside(const NBitsTable& table, const std::int32_t* indices, std::int64_t count) {
  return find_any_outside(table, indices, count);
}

std::int64_t find_outside(const NBitsTable& table, const std::int64_t* indices, std::int64_t count) {
  return find_any_outside(table, indices, count);
}

void gather(const NBitsTable& table, const std::int32_t* indices, std::int64_t count, void* out, Isa isa,
            const Parallel& parallel) {
  gather_any(table, indices, count, out, isa, parallel);
}

void gather(const NBitsTable& table, const std::int64_t* indices, std::int64_t count, void* out, Isa isa,
            const Parallel& parallel) {
  gather_any(table, indices, count, out, isa, parallel);
}

}  // namespace onnxpress
