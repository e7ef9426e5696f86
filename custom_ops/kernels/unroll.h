// Loops of a fixed length that are unrolled, so that arrays of vectors stay in registers.
//
// Everything in the files that include this has internal linkage, and nothing comes from the standard library: see
// matmul_nbits_tiles.h.
#pragma once

#include <cstdint>

namespace onnxpress {
namespace {

template <int I>
struct Index {
  static constexpr int value = I;
};

// body(Index<0>), body(Index<1>), ... body(Index<Count - 1>)
template <int Count, int I = 0, class F>
__attribute__((always_inline)) inline void unroll(const F& body) {
  if constexpr (I < Count) {
    body(Index<I>{});
    unroll<Count, I + 1>(body);
  }
}
#define ONNXPRESS_EACH(i) [&](auto i) __attribute__((always_inline))

// Before a loop of at most 8 turns whose index need not be known to types: compiled in a third of the time of `unroll`.
#define ONNXPRESS_UNROLLED _Pragma("GCC unroll 8")

// body(Index<Rows>, row) with Rows as near Most as equal groups allow: 8 rows are 4 and 4, not 6, 1 and 1.
template <int Rows, class F>
__attribute__((always_inline)) inline void call_with_rows(std::int64_t rows, std::int64_t row, const F& body) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return call_with_rows<Rows - 1>(rows, row, body);
  }
  body(Index<Rows>{}, row);
}

template <int Most, class F>
void for_each_group_of_rows(std::int64_t begin, std::int64_t end, const F& body) {
  std::int64_t groups = (end - begin + Most - 1) / Most;
  for (std::int64_t row = begin; row < end; --groups) {
    const std::int64_t rows = (end - row + groups - 1) / groups;
    call_with_rows<Most>(rows, row, body);
    row += rows;
  }
}

}  // namespace
}  // namespace onnxpress
