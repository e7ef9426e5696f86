#include "kernels/nbits_source.h"

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

bool is_block_size(std::int64_t block_size, std::int64_t K) {
  return block_size >= 1 && (block_size % 16 == 0 || block_size >= K);
}

}  // namespace onnxpress
