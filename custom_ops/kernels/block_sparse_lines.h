// How rows of A lie for a block-sparse product of many rows, and how many words of the weight are taken at once.
//
// A group is given as 64 times its number, a k that is gathered as 16 times its.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/block_sparse_kernels.h"
#include "kernels/block_sparse_words.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

// Lines of 16 rows, `Count` of them side by side.
template <class S, class P, int Count>
struct WholeLines {
  using Words = P;
  using Lanes = typename P::Lanes[Count];
  static constexpr int kCount = Count;
  static constexpr int kFours = 1;
  static constexpr std::int64_t kBytes = kLine * Count;

  static std::size_t place(std::uint32_t group) { return static_cast<std::size_t>(group) * Count; }
  static typename P::Four fours(const std::uint8_t* words) { return P::four(words); }
  __attribute__((always_inline)) static void load(const std::uint8_t* x, const std::uint32_t* group, std::int64_t,
                                                  Lanes& lanes) {
    const std::uint8_t* line = x + place(*group);
    unroll<Count>(ONNXPRESS_EACH(t) { lanes[t.value] = P::lanes(line + kLine * t.value); });
  }
  static typename P::Sum start(const SparseRows& rows, std::int64_t output) { return P::start(rows, output); }
  static typename P::Sum whole(const typename P::Sum& sum) { return sum; }

  static void gather(const std::uint8_t* x, const std::uint32_t* ks, std::uint8_t* to) {
    const std::uint8_t* from[4];
    for (int j = 0; j < 4; ++j) from[j] = x + place(ks[j]);
    S::template gather<Count>(from, to);
  }
};

// Lines of 8 rows. A vector holds two of them, of two groups whose words are four words apart: sums are of every other
// four words, and in the end added.
template <class S>
struct HalfLines {
  using Words = CodeWords<S>;
  using Lanes = typename Words::Lanes[1];
  static constexpr int kCount = 1;
  static constexpr int kFours = 2;
  static constexpr std::int64_t kBytes = kLine / 2;

  static std::size_t place(std::uint32_t group) { return group / 2; }
  static typename Words::Four fours(const std::uint8_t* words) { return S::eight_codes(words); }
  // Zeros in the place of the second four.
  static typename Words::Four last_four(const std::uint8_t* words) { return S::four_codes_below(words); }
  __attribute__((always_inline)) static void load(const std::uint8_t* x, const std::uint32_t* group, std::int64_t apart,
                                                  Lanes& lanes) {
    lanes[0] = S::two_halves(x + place(group[0]), x + place(group[apart]));
  }
  static typename Words::Sum start(const SparseRows& rows, std::int64_t output) {
    return S::set_below(rows.starts[output]);
  }
  static typename Words::Sum whole(const typename Words::Sum& sum) { return S::add_halves(sum); }

  static void gather(const std::uint8_t* x, const std::uint32_t* ks, std::uint8_t* to) {
    const std::uint8_t* from[4];
    for (int j = 0; j < 4; ++j) from[j] = x + place(ks[j]);
    S::gather_half(from, to);
  }
};

}  // namespace
}  // namespace onnxpress
