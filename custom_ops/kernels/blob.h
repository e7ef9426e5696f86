// Constant bytes on a cache line, on the heap or in a mapped file, held by all who need them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "kernels/aligned.h"

namespace onnxpress {

struct Blob {
  std::shared_ptr<const std::uint8_t> bytes;
  std::size_t size = 0;

  const std::uint8_t* data() const { return bytes.get(); }
};

inline Blob make_blob(Aligned<std::uint8_t> memory, std::size_t size) {
  const Free free = memory.get_deleter();
  return {std::shared_ptr<const std::uint8_t>(memory.release(), free), size};
}

inline Blob copy(const void* bytes, std::size_t size) {
  Aligned<std::uint8_t> memory = make_aligned<std::uint8_t>(size);
  std::memcpy(memory.get(), bytes, size);
  return make_blob(std::move(memory), size);
}

}  // namespace onnxpress
