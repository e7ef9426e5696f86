// Memory for vector loads: zeroed, on a cache line.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace onnxpress {

inline constexpr std::size_t kCacheLine = 64;

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};

template <class T>
using Aligned = std::unique_ptr<T[], Free>;

// Zeroed, so that the padding of packed forms is too. Throws std::bad_alloc.
template <class T>
Aligned<T> make_aligned(std::size_t count) {
  if (count > (static_cast<std::size_t>(-1) - kCacheLine) / sizeof(T)) throw std::bad_alloc();
  const std::size_t bytes = (count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
  void* memory = std::aligned_alloc(kCacheLine, bytes != 0 ? bytes : kCacheLine);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  return Aligned<T>(static_cast<T*>(memory));
}

}  // namespace onnxpress
