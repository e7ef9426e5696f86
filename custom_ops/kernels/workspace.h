// Memory that a product needs while it runs.
//
// It is bounded, because rows come in chunks, and freed with the product. It is allocated before work is given to other
// threads and never by them: what a task throws inside of somebody else's pool ends the process, or leaves threads that
// wait for the task spinning for ever.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>

#include "kernels/aligned.h"

namespace onnxpress {

// For the rows of a chunk: as much as the last cache holds, and so many rows that starting threads anew for each chunk
// costs nothing.
inline constexpr std::int64_t kMaxWorkspace = std::int64_t{1} << 23;

// On a cache line, with any contents. From the heap, which after the first product has such memory at hand, where pages
// of their own would have to be zeroed for each. Throws std::bad_alloc.
inline Aligned<std::uint8_t> make_workspace(std::size_t bytes) {
  void* memory = std::aligned_alloc(kCacheLine, (bytes / kCacheLine + 1) * kCacheLine);
  if (memory == nullptr) throw std::bad_alloc();
  return Aligned<std::uint8_t>(static_cast<std::uint8_t*>(memory), Free{});
}

// How many of `rows` rows, of so many bytes each, make a chunk: all, or a multiple of `step`.
inline std::int64_t rows_per_chunk(std::int64_t rows, std::int64_t row_bytes, std::int64_t step) {
  return std::min(rows, std::max<std::int64_t>(kMaxWorkspace / row_bytes / step, 1) * step);
}

// Rows, one or more, that go through memory of so many bytes each, in chunks of equal length: few rows at the end could
// run other code than those before. A chunk has at least as many rows as meet a weight before it is read again.
class EvenChunks {
 public:
  EvenChunks(std::int64_t rows, std::int64_t row_bytes) : rows_(rows), most_(rows_per_chunk(rows, row_bytes, 96)) {}

  // How many rows the longest has.
  std::int64_t most() const { return most_; }

  // work(begin, rows)
  template <class Work>
  void for_each(const Work& work) const {
    const std::int64_t chunks = (rows_ + most_ - 1) / most_;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t begin = rows_ * chunk / chunks;
      work(begin, rows_ * (chunk + 1) / chunks - begin);
    }
  }

 private:
  const std::int64_t rows_, most_;
};

}  // namespace onnxpress
