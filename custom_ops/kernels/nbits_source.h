// A weight of 2 to 8 bits in blocks along K as ONNX stores it: (code - zero point) * scale, or the floating-point
// number that the code stands for, times the scale.
#pragma once

#include <cstdint>

#include "kernels/minifloat.h"

namespace onnxpress {

enum class ScaleType { kFloat32, kFloat16, kBFloat16, kExponent };  // the last is 2^(code - 127), for floating point

// Bytes of one.
inline std::int64_t size_of(ScaleType type) {
  if (type == ScaleType::kFloat32) return 4;
  return type == ScaleType::kExponent ? 1 : 2;
}

struct NBitsSource {
  enum class Layout {
    kBlocks,   // [N, blocks, bit planes of block_size codes], zero points [N, bit planes of blocks]: MatMulNBits
    kColumns,  // [N, K] without gaps, 4 or 8 bits, zero points in the order of the scales: DequantizeLinear
    kRows,     // the same, [K, N]
  };

  std::int64_t K = 0;
  std::int64_t N = 0;
  int bits = 0;
  CodeKind kind = CodeKind::kInteger;  // others have no zero points
  std::int64_t block_size = 0;         // a multiple of 16, or not less than K
  Layout layout = Layout::kBlocks;
  bool is_signed = false;  // codes and zero points, as two's complement
  const std::uint8_t* codes = nullptr;
  const void* scales = nullptr;
  ScaleType scale_type = ScaleType::kFloat32;
  std::int64_t scale_per_block = 0, scale_per_column = 0;  // steps between scales, in elements
  const std::uint8_t* zero_points = nullptr;               // or null
  const void* float_zero_points = nullptr;                 // of scale_type, in the order of the scales, or null

  std::int64_t blocks() const { return (K + block_size - 1) / block_size; }
  std::int64_t scale_index(std::int64_t block, std::int64_t n) const {
    return block * scale_per_block + n * scale_per_column;
  }
  // Without zero points: 2^(bits - 1), or 0 for the unsigned codes of DequantizeLinear. Always where codes are no
  // integers.
  bool symmetric() const;

  // One value each, at the speed of one value at a time. Codes and zero points as unsigned: signed ones are shifted by
  // half the range, which cancels out between the two.
  std::uint8_t code(std::int64_t k, std::int64_t n) const;
  std::uint8_t zero_point(std::int64_t block, std::int64_t n) const;
  float float_zero_point(std::int64_t block, std::int64_t n) const;
  float scale(std::int64_t block, std::int64_t n) const;
  float value(std::int64_t k, std::int64_t n) const;

  // Whether no code is infinite or NaN.
  bool has_finite_codes() const;
  // Whether all scales are positive numbers.
  bool has_positive_scales() const;
};

// The format of this name, kInteger where there is none, and the names there are.
CodeKind minifloat_kind(const char* name);
const char* minifloat_names();

// Whether the kernels can have blocks of this size.
bool is_block_size(std::int64_t block_size, std::int64_t K);

}  // namespace onnxpress
