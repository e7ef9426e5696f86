// Codes of 2 to 8 bits as ONNX stores them: bit planes of width 8, 4, 2 and 1, the lowest bits first, each packed
// with the first code in the low bits of a byte.
#pragma once

#include <cstdint>

namespace onnxpress {

// body(width, shift) for each plane of `bits`.
template <class Body>
void for_each_plane(int bits, const Body& body) {
  int shift = 0;
  for (int width : {8, 4, 2, 1}) {
    if ((bits & width) == 0) continue;
    body(width, shift);
    shift += width;
  }
}

inline std::int64_t plane_bytes(std::int64_t count, int width) { return (count * width + 7) / 8; }

inline std::int64_t packed_bytes(std::int64_t count, int bits) {
  std::int64_t bytes = 0;
  for_each_plane(bits, [&](int width, int) { bytes += plane_bytes(count, width); });
  return bytes;
}

// Adds a plane to `count` codes. The width is a constant so that the loop over whole bytes becomes vectors: this is
// most of the time it takes to load a model.
template <int Width>
void unpack_plane(const std::uint8_t* packed, std::int64_t count, int shift, std::uint8_t* codes) {
  constexpr int kPerByte = 8 / Width, kMask = (1 << Width) - 1;
  const auto field = [&](std::int64_t byte, int j) { return (packed[byte] >> (j * Width) & kMask) << shift; };
  const std::int64_t whole = count / kPerByte;
  for (std::int64_t byte = 0; byte < whole; ++byte) {
    for (int j = 0; j < kPerByte; ++j) {
      std::uint8_t& code = codes[byte * kPerByte + j];
      code = static_cast<std::uint8_t>(code | field(byte, j));
    }
  }
  for (std::int64_t i = whole * kPerByte; i < count; ++i) {
    codes[i] = static_cast<std::uint8_t>(codes[i] | field(whole, static_cast<int>(i % kPerByte)));
  }
}

// `count` codes, one a byte, out of packed_bytes(count, bits).
inline void unpack_planes(const std::uint8_t* packed, std::int64_t count, int bits, std::uint8_t* codes) {
  for (std::int64_t i = 0; i < count; ++i) codes[i] = 0;
  for_each_plane(bits, [&](int width, int shift) {
    if (width == 8) unpack_plane<8>(packed, count, shift, codes);
    if (width == 4) unpack_plane<4>(packed, count, shift, codes);
    if (width == 2) unpack_plane<2>(packed, count, shift, codes);
    if (width == 1) unpack_plane<1>(packed, count, shift, codes);
    packed += plane_bytes(count, width);
  });
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
