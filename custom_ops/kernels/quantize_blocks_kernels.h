// The table of functions that every instruction set fills for quantize_blocks.
#pragma once

#include <cstdint>

#include "kernels/quantize_blocks.h"

namespace onnxpress {

inline constexpr int kLanes = 16;  // blocks of 16 output channels side by side

struct LaneBlock {
  const float* x;  // [block_size, 16]
  float* codes;    // [block_size, 16]
  float* trial;    // [block_size, 16], scratch
  float scale[kLanes];
  float zero_point[kLanes];
  float error[kLanes];
  float baseline[kLanes];
};

struct QuantizeKernels {
  void (*block)(const BlockScheme&, LaneBlock&);
  bool (*finite_float)(const std::uint32_t*, std::int64_t);
  bool (*finite_half)(const std::uint16_t*, std::int64_t);
  void (*to_float)(const std::uint16_t*, float*, std::int64_t);
};

const QuantizeKernels& quantize_kernels_scalar();
#if defined(__x86_64__)
const QuantizeKernels& quantize_kernels_avx2();
const QuantizeKernels& quantize_kernels_avx512vnni();
#endif

}  // namespace onnxpress
