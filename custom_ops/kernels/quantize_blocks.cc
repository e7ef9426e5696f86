#include "kernels/quantize_blocks.h"

#include <algorithm>
#include <vector>

#include "kernels/bit_planes.h"
#include "kernels/kernel_table.h"
#include "kernels/quantize_blocks_kernels.h"

namespace onnxpress {
namespace {

// `count` consecutive values of the weight as floats.
void load_values(const WeightView& weight, const QuantizeKernels& kernels, std::int64_t from, std::int64_t count,
                 float* to) {
  if (weight.half) {
    kernels.to_float(static_cast<const std::uint16_t*>(weight.data) + from, to, count);
  } else {
    std::copy_n(static_cast<const float*>(weight.data) + from, count, to);
  }
}

// The block that starts at k of 16 channels from n, [block_size, 16]; zero outside the weight.
void load_block(const WeightView& weight, const QuantizeKernels& kernels, std::int64_t n, std::int64_t columns,
                std::int64_t k, std::int64_t size, float* row, float* x) {
  const std::int64_t count = std::min(size, weight.K - k);
  std::fill_n(x, size * kLanes, 0.0f);
  if (weight.transposed) {
    for (std::int64_t c = 0; c < columns; ++c) {
      load_values(weight, kernels, (n + c) * weight.K + k, count, row);
      for (std::int64_t i = 0; i < count; ++i) x[i * kLanes + c] = row[i];
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      load_values(weight, kernels, (k + i) * weight.N + n, columns, x + i * kLanes);
    }
  }
}

}  // namespace

RoundingCosts quantize_blocks(const WeightView& weight, const BlockScheme& scheme, const float* importance,
                              std::int64_t begin, std::int64_t end, const QuantizedBlocks& out, Isa isa) {
  const QuantizeKernels& kernels = best_kernels<QuantizeKernels>(isa);
  const std::int64_t size = scheme.block_size;
  const std::int64_t blocks = (weight.K + size - 1) / size;
  const std::int64_t blob = size * scheme.bits / 8;
  std::vector<float> memory(static_cast<std::size_t>(3 * size * kLanes + 2 * size));
  float* x = memory.data();
  float* row = x + 3 * size * kLanes;
  float* counted = row + size;  // importance, zero behind the last input
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(size));
  LaneBlock block{
      x, x + size * kLanes, x + 2 * size * kLanes, importance != nullptr ? counted : nullptr, {}, {}, {}, {}, {}};
  RoundingCosts errors;
  // Along the rows of a [K, N] weight first: memory comes in whole pages rather than a cache line of each.
  for (std::int64_t b = 0; b < blocks; ++b) {
    if (importance != nullptr) {
      std::copy_n(importance + b * size, std::min(size, weight.K - b * size), counted);
    }
    for (std::int64_t n = begin; n < end; n += kLanes) {
      const std::int64_t columns = std::min<std::int64_t>(kLanes, end - n);
      load_block(weight, kernels, n, columns, b * size, size, row, x);
      kernels.block(scheme, block);
      for (std::int64_t c = 0; c < columns; ++c) {
        const std::int64_t at = (n + c) * blocks + b;
        for (std::int64_t k = 0; k < size; ++k) {
          codes[static_cast<std::size_t>(k)] = static_cast<std::uint8_t>(block.codes[k * kLanes + c]);
        }
        pack_planes(codes.data(), size, scheme.bits, out.packed + at * blob);
        out.scales[at] = block.scale[c];
        out.zero_points[at] = static_cast<std::uint8_t>(block.zero_point[c]);
        errors.error += static_cast<double>(block.error[c]);
        errors.cost += static_cast<double>(block.cost[c]);
        errors.baseline += static_cast<double>(block.baseline[c]);
      }
      for (std::int64_t i = 0; i < size * kLanes; ++i) {
        errors.energy += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      }
    }
  }
  return errors;
}

bool all_finite(const void* data, bool half, std::int64_t count, Isa isa) {
  const QuantizeKernels& kernels = best_kernels<QuantizeKernels>(isa);
  return half ? kernels.finite_half(static_cast<const std::uint16_t*>(data), count)
              : kernels.finite_float(static_cast<const std::uint32_t*>(data), count);
}

}  // namespace onnxpress
