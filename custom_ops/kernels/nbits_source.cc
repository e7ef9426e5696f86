#include "kernels/nbits_source.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/bit_planes.h"
#include "kernels/half.h"

namespace onnxpress {
namespace {

float float_at(const NBitsSource& source, const void* values, std::int64_t index) {
  switch (source.scale_type) {
    case ScaleType::kFloat16:
      return half_to_float(static_cast<const std::uint16_t*>(values)[index]);
    case ScaleType::kBFloat16:
      return bfloat16_to_float(static_cast<const std::uint16_t*>(values)[index]);
    case ScaleType::kExponent:
      return exponent_to_float(static_cast<const std::uint8_t*>(values)[index]);
    default:
      return static_cast<const float*>(values)[index];
  }
}

// Of 4 or 8 bits without gaps.
std::uint8_t flat_at(const NBitsSource& source, const std::uint8_t* values, std::int64_t index) {
  const int value = source.bits == 4 ? values[index / 2] >> (index % 2 * 4) & 15 : values[index];
  return static_cast<std::uint8_t>(source.is_signed ? value ^ 1 << (source.bits - 1) : value);
}

}  // namespace

bool NBitsSource::symmetric() const {
  if (kind != CodeKind::kInteger) return true;
  return zero_points == nullptr && float_zero_points == nullptr && (layout == Layout::kBlocks || is_signed);
}

std::uint8_t NBitsSource::code(std::int64_t k, std::int64_t n) const {
  if (layout == Layout::kRows) return flat_at(*this, codes, k * N + n);
  if (layout == Layout::kColumns) return flat_at(*this, codes, n * K + k);
  const std::uint8_t* block = codes + (n * blocks() + k / block_size) * packed_bytes(block_size, bits);
  return unpack_one(block, block_size, bits, k % block_size);
}

std::uint8_t NBitsSource::zero_point(std::int64_t block, std::int64_t n) const {
  if (zero_points == nullptr) return static_cast<std::uint8_t>(symmetric() ? 1 << (bits - 1) : 0);
  if (layout != Layout::kBlocks) return flat_at(*this, zero_points, scale_index(block, n));
  return unpack_one(zero_points + n * packed_bytes(blocks(), bits), blocks(), bits, block);
}

float NBitsSource::float_zero_point(std::int64_t block, std::int64_t n) const {
  return float_at(*this, float_zero_points, scale_index(block, n));
}

float NBitsSource::scale(std::int64_t block, std::int64_t n) const {
  return float_at(*this, scales, scale_index(block, n));
}

float NBitsSource::value(std::int64_t k, std::int64_t n) const {
  const std::int64_t block = k / block_size;
  if (kind != CodeKind::kInteger) return minifloat_value(kind, code(k, n)) * scale(block, n);
  const float zero = float_zero_points != nullptr ? float_zero_point(block, n) : zero_point(block, n);
  return (static_cast<float>(code(k, n)) - zero) * scale(block, n);
}

bool NBitsSource::has_finite_codes() const {
  if (kind == CodeKind::kInteger || bits < 8) return true;  // formats of fewer bits have only numbers
  const std::int64_t count = N * (layout == Layout::kBlocks ? blocks() * block_size : K);
  const int largest = minifloat(kind).largest;
  int most = 0;
  for (std::int64_t i = 0; i < count; ++i) most = std::max(most, codes[i] & 0x7f);
  return most <= largest;
}

bool NBitsSource::has_positive_scales() const {
  const std::int64_t count = scale_index(blocks() - 1, N - 1) + 1;
  bool all = true;
  for (std::int64_t i = 0; i < count && all; ++i) {
    const float scale = float_at(*this, scales, i);
    all = scale > 0 && scale <= std::numeric_limits<float>::max();
  }
  return all;
}

CodeKind minifloat_kind(const char* name) {
  for (int i = 0; i < kMiniFloatFormats; ++i) {
    if (std::strcmp(kMiniFloats[i].name, name) == 0) return static_cast<CodeKind>(i + 1);
  }
  return CodeKind::kInteger;
}

const char* minifloat_names() { return "e4m3fn, e5m2, e3m4, e3m2, e2m3, e2m1 or nf4"; }

bool is_block_size(std::int64_t block_size, std::int64_t K) {
  return block_size >= 1 && (block_size % 16 == 0 || block_size >= K);
}

}  // namespace onnxpress
