#include "hash.h"

#include <algorithm>
#include <cstring>

namespace onnxpress {
namespace {

constexpr std::size_t kLanes = 4;  // independent, so that the memory and not the multiplier is the limit
constexpr std::size_t kStripe = kLanes * sizeof(std::uint64_t);
constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio: its bits are well mixed

// One to one in each of its arguments: damage within one word always changes the hash.
std::uint64_t mix(std::uint64_t state, std::uint64_t word) {
  state = (state ^ word) * kOdd;
  return state ^ state >> 32;
}

}  // namespace

std::uint64_t hash_of(const void* bytes, std::size_t size) {
  std::uint64_t lanes[kLanes] = {1, 2, 3, 4};
  const auto* at = static_cast<const unsigned char*>(bytes);
  for (std::size_t left = size; left > 0;) {
    std::uint64_t words[kLanes] = {};
    const std::size_t step = std::min(left, kStripe);
    std::memcpy(words, at, step);
    for (std::size_t i = 0; i < kLanes; ++i) lanes[i] = mix(lanes[i], words[i]);
    at += step;
    left -= step;
  }
  std::uint64_t hash = mix(0, size);
  for (std::uint64_t lane : lanes) hash = mix(hash, lane);
  return mix(hash, 0);
}

std::string to_hex(std::uint64_t hash) {
  std::string text(16, '0');
  for (std::size_t i = text.size(); i-- > 0; hash >>= 4) text[i] = "0123456789abcdef"[hash & 15];
  return text;
}

}  // namespace onnxpress
