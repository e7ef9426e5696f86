// Block-sparse products of few rows: a line holds the words of 16 outputs at one group, those that are not stored
// filled with zeros.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/block_sparse_finish.h"
#include "kernels/block_sparse_words.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

template <class S, class P, int Rows>
void multiply_few_rows(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t tile, std::int64_t row) {
  const BlockSparseWeight& w = *p.weight;
  constexpr int kSets = Rows <= 2 ? 4 : 2;  // entries in a row have sums of their own, to hide the latency
  typename P::Sum sum[Rows][kSets];
  unroll<Rows>(ONNXPRESS_EACH(r) {
    unroll<kSets>(
        ONNXPRESS_EACH(s) { sum[r.value][s.value] = s.value != 0 ? P::zero() : P::starts(rows, tile * kTile); });
  });
  const std::uint8_t* x = rows.words + row * rows.row_bytes;
  const std::uint8_t* words = w.words + 4 * w.tile_words[tile];
  std::int64_t entry = w.tile_entries[tile];
  const std::int64_t end = w.tile_entries[tile + 1];
  const auto add_entry = [&](auto set, std::int64_t at, const std::uint8_t* from) __attribute__((always_inline)) {
    const auto spread = P::expand(from, w.masks[at]);
    unroll<Rows>(ONNXPRESS_EACH(r) {
      auto& total = sum[r.value][set.value];
      total = P::add_spread(total, x + r.value * rows.row_bytes + w.entries[at], spread);
    });
  };
  for (; entry + 4 <= end; entry += 4) {
    std::uint64_t masks;  // so that one count of bits, not four, follows the other
    memcpy(&masks, w.masks + entry, sizeof masks);
    unroll<4>(ONNXPRESS_EACH(i) {
      constexpr std::uint64_t kBefore = (std::uint64_t{1} << 16 * i.value) - 1;
      add_entry(Index<i.value % kSets>{}, entry + i.value, words + 4 * __builtin_popcountll(masks & kBefore));
    });
    words += 4 * __builtin_popcountll(masks);
  }
  for (; entry < end; ++entry) {
    add_entry(Index<0>{}, entry, words);
    words += 4 * __builtin_popcountll(w.masks[entry]);
  }
  alignas(64) std::uint8_t lines[Rows][kLine];
  unroll<Rows>(ONNXPRESS_EACH(r) {
    auto total = sum[r.value][0];
    unroll<kSets - 1>(ONNXPRESS_EACH(s) { total = P::sum(total, sum[r.value][s.value + 1]); });
    P::store(lines[r.value], total);
  });
  const FinishRow<S> finish(p, rows);
  for (int r = 0; r < Rows; ++r) finish(row + r, tile, P::load(lines[r]));
}

template <class S>
void sparse_multiply_few(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t tile, std::int64_t end) {
  for (; tile < end; ++tile) {
    for_each_group_of_rows<S::kRows>(0, p.M, [&](auto rows_at_once, std::int64_t row) {
      constexpr int kRows = decltype(rows_at_once)::value;
      if (p.weight->is_float) {
        multiply_few_rows<S, FloatWords<S>, kRows>(p, rows, tile, row);
      } else {
        multiply_few_rows<S, CodeWords<S>, kRows>(p, rows, tile, row);
      }
    });
  }
}

}  // namespace
}  // namespace onnxpress
