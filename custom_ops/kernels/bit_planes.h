// Codes of 2 to 8 bits as ONNX stores them: bit planes of width 8, 4, 2 and 1, the lowest bits first, each packed
// with the first code in the low bits of a byte.
#pragma once

#include <cstdint>
#include <type_traits>

namespace onnxpress {

// body(width, shift) for each plane of `bits`; the width is a constant of the type std::integral_constant.
template <class Body>
void for_each_plane(int bits, const Body& body) {
  int shift = 0;
  const auto visit = [&](auto width) {
    if ((bits & width) == 0) return;
    body(width, shift);
    shift += width;
  };
  visit(std::integral_constant<int, 8>());
  visit(std::integral_constant<int, 4>());
  visit(std::integral_constant<int, 2>());
  visit(std::integral_constant<int, 1>());
}

inline std::int64_t plane_bytes(std::int64_t count, int width) { return (count * width + 7) / 8; }

inline std::int64_t packed_bytes(std::int64_t count, int bits) {
  std::int64_t bytes = 0;
  for_each_plane(bits, [&](int width, int) { bytes += plane_bytes(count, width); });
  return bytes;
}

// Code `index` of `count`.
inline std::uint8_t unpack_one(const std::uint8_t* packed, std::int64_t count, int bits, std::int64_t index) {
  int code = 0;
  for_each_plane(bits, [&](int width, int shift) {
    const int field = packed[index * width / 8] >> (index * width % 8) & ((1 << width) - 1);
    code |= field << shift;
    packed += plane_bytes(count, width);
  });
  return static_cast<std::uint8_t>(code);
}

// `count` codes, one a byte, out of packed_bytes(count, bits).
inline void unpack_planes(const std::uint8_t* packed, std::int64_t count, int bits, std::uint8_t* codes) {
  for (std::int64_t i = 0; i < count; ++i) codes[i] = unpack_one(packed, count, bits, i);
}

// The inverse of `unpack_planes`; bits past the last code are zero.
inline void pack_planes(const std::uint8_t* codes, std::int64_t count, int bits, std::uint8_t* packed) {
  for_each_plane(bits, [&](int width, int shift) {
    const int per_byte = 8 / width;
    const int mask = (1 << width) - 1;
    const std::int64_t bytes = plane_bytes(count, width);
    for (std::int64_t byte = 0; byte < bytes; ++byte) {
      int value = 0;
      for (int j = 0; j < per_byte && byte * per_byte + j < count; ++j) {
        value |= (codes[byte * per_byte + j] >> shift & mask) << (j * width);
      }
      packed[byte] = static_cast<std::uint8_t>(value);
    }
    packed += bytes;
  });
}

}  // namespace onnxpress
