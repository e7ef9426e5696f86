// Memory for vector loads: zeroed, on a cache line.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/platform.h"

namespace onnxpress {

inline constexpr std::size_t kCacheLine = 64;

// From here on memory comes in pages of its own: they go back to the system when they are freed, where the heap would
// keep them, and come zeroed.
inline constexpr std::size_t kOwnPages = std::size_t{1} << 20;

struct Free {
  std::size_t mapped = 0;  // bytes of a map, 0 for the heap
  void operator()(const void* constant) const {
    void* pointer = const_cast<void*>(constant);
    if (mapped != 0) {
      unmap_pages(pointer, mapped);
    } else {
      std::free(pointer);
    }
  }
};

template <class T>
using Aligned = std::unique_ptr<T[], Free>;

// Zeroed, so that the padding of packed forms is too. Throws std::bad_alloc.
template <class T>
Aligned<T> make_aligned(std::size_t count) {
  if (count > (static_cast<std::size_t>(-1) - kCacheLine) / sizeof(T)) throw std::bad_alloc();
  const std::size_t bytes = (count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
  if (bytes >= kOwnPages) {
    void* pages = map_pages(bytes);
    if (pages == nullptr) throw std::bad_alloc();
    return Aligned<T>(static_cast<T*>(pages), Free{bytes});
  }
  void* memory = std::aligned_alloc(kCacheLine, bytes != 0 ? bytes : kCacheLine);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  return Aligned<T>(static_cast<T*>(memory), Free{});
}

}  // namespace onnxpress
