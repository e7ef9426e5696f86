// Block-sparse products of many rows: a line holds the words of 16 rows at one group, and a weight's word is multiplied
// with all of them, so that nothing depends on where the stored weights lie. Sums of outputs lie side by side; they are
// transposed at the end.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/block_sparse_finish.h"
#include "kernels/block_sparse_lines.h"
#include "kernels/block_sparse_words.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

// The groups of a block row, or some of them, that are multiplied at once.
struct GroupRange {
  const std::uint8_t* x;
  const std::uint32_t* groups;
  std::int64_t count;
};

// Adds the products of steps of `L::kFours` vectors of four words, `Times` of them in turn.
//
// step(time, words, i, apart): of groups from number `i` on, and of those `apart` behind them.
template <class L, int Groups, int Times, class Step>
__attribute__((always_inline)) inline void for_each_step(std::int64_t count, const std::uint8_t* words,
                                                         const Step& step) {
  constexpr int kStep = Groups * L::kFours, kBytes = 16 * L::kFours;
  std::int64_t i = 0;
  for (; i + Times * kStep <= count; i += Times * kStep, words += Times * kBytes) {
    unroll<Times>(ONNXPRESS_EACH(time) {
      step(time, L::fours(words + time.value * kBytes), i + time.value * kStep, std::int64_t{Groups});
    });
  }
  if constexpr (Times > 1) {
    for (; i + kStep <= count; i += kStep, words += kBytes) step(Index<0>{}, L::fours(words), i, std::int64_t{Groups});
  }
  if constexpr (L::kFours > 1) {
    if (i < count) step(Index<0>{}, L::last_four(words), i, std::int64_t{0});
  }
}

// Adds up `Sets` sums.
template <class P, int Sets>
__attribute__((always_inline)) inline typename P::Sum sum_of(const typename P::Sum (&sums)[Sets]) {
  typename P::Sum total = sums[0];
  if constexpr (Sets > 1) unroll<Sets - 1>(ONNXPRESS_EACH(i) { total = P::sum(total, sums[i.value + 1]); });
  return total;
}

// How many sums an output of `outputs` has of its own: as many together as hide the latency.
template <class L, int Outputs>
constexpr int sets_of() {
  constexpr int kWanted = L::Words::kSums / (Outputs * L::kCount);
  return kWanted > 1 ? kWanted : 1;
}

// `Width` outputs. Four words of the weights at once: those of one group, of two or of four.
template <class L, int Width, class Start>
__attribute__((noinline)) void multiply_strip(const GroupRange& range, const std::uint8_t* words, const Start& start,
                                              std::uint8_t* sums) {
  using P = typename L::Words;
  constexpr int kGroups = 4 / Width, kSets = sets_of<L, Width>();
  constexpr int kTimes = kSets > kGroups ? kSets / kGroups : 1;
  typename P::Sum sum[Width][L::kCount][kSets];
  unroll<Width>(ONNXPRESS_EACH(n) {
    unroll<L::kCount>(ONNXPRESS_EACH(t) {
      const std::uint8_t* line = sums + kLine * (n.value * L::kCount + t.value);
      unroll<kSets>(
          ONNXPRESS_EACH(s) { sum[n.value][t.value][s.value] = s.value != 0 ? P::zero() : start(n.value, line); });
    });
  });
  for_each_step<L, kGroups, kTimes>(range.count, words,
                                    [&](auto time, const auto& fours, std::int64_t i, std::int64_t apart)
                                        __attribute__((always_inline)) {
                                          unroll<kGroups>(ONNXPRESS_EACH(g) {
                                            constexpr int kSet = (decltype(time)::value * kGroups + g.value) % kSets;
                                            typename L::Lanes lanes;
                                            L::load(range.x, range.groups + i + g.value, apart, lanes);
                                            unroll<Width>(ONNXPRESS_EACH(n) {
                                              const auto word = P::template word<g.value * Width + n.value>(fours);
                                              unroll<L::kCount>(ONNXPRESS_EACH(t) {
                                                auto& total = sum[n.value][t.value][kSet];
                                                total = P::add_product(total, lanes[t.value], word);
                                              });
                                            });
                                          });
                                        });
  unroll<Width>(ONNXPRESS_EACH(n) {
    unroll<L::kCount>(ONNXPRESS_EACH(t) {
      P::store(sums + kLine * (n.value * L::kCount + t.value), L::whole(sum_of<P>(sum[n.value][t.value])));
    });
  });
}

// All strips of a block row, for groups from the one of number `begin` on.
template <class L>
void multiply_block_row(const BlockSparseWeight& w, const SparseRows& rows, std::int64_t block_row,
                        const GroupRange& range, std::int64_t begin, std::uint8_t* sums) {
  const std::int64_t first = w.row_groups[block_row], all = w.row_groups[block_row + 1] - first;
  const std::uint8_t* words = w.strips + 4 * first * w.block_n;
  for (std::int64_t n = 0, width = 0; n < w.block_n; n += width) {
    width = strip_width(w.block_n - n);
    const std::uint8_t* strip = words + 4 * (all * n + begin * width);
    std::uint8_t* to = sums + kLine * L::kCount * n;
    const std::int64_t output = block_row * w.block_n + n;
    const auto start = [&](int i, const std::uint8_t* line) __attribute__((always_inline)) {
      return begin == 0 ? L::start(rows, output + i) : L::Words::load(line);
    };
    if (width == 4) multiply_strip<L, 4>(range, strip, start, to);
    if (width == 2) multiply_strip<L, 2>(range, strip, start, to);
    if (width == 1) multiply_strip<L, 1>(range, strip, start, to);
  }
}

// Four outputs, each with groups of its own.
template <class L, class Start>
__attribute__((noinline)) void multiply_bundle(const GroupRange& range, const std::uint8_t* words,
                                               const std::uint8_t (&outputs)[4], const Start& start,
                                               std::uint8_t* sums) {
  using P = typename L::Words;
  constexpr int kSets = sets_of<L, 4>();
  typename P::Sum sum[4][L::kCount][kSets];
  const auto line = [&](int n) { return sums + kLine * L::kCount * outputs[n]; };
  unroll<4>(ONNXPRESS_EACH(n) {
    unroll<L::kCount>(ONNXPRESS_EACH(t) {
      unroll<kSets>(ONNXPRESS_EACH(s) {
        sum[n.value][t.value][s.value] =
            s.value != 0 ? P::zero() : start(outputs[n.value], line(n.value) + kLine * t.value);
      });
    });
  });
  for_each_step<L, 1, kSets>(range.count, words,
                             [&](auto time, const auto& fours, std::int64_t i, std::int64_t apart)
                                 __attribute__((always_inline)) {
                                   unroll<4>(ONNXPRESS_EACH(n) {
                                     typename L::Lanes lanes;
                                     L::load(range.x, range.groups + 4 * i + n.value, 4 * apart, lanes);
                                     const auto word = P::template word<n.value>(fours);
                                     unroll<L::kCount>(ONNXPRESS_EACH(t) {
                                       auto& total = sum[n.value][t.value][decltype(time)::value];
                                       total = P::add_product(total, lanes[t.value], word);
                                     });
                                   });
                                 });
  unroll<4>(ONNXPRESS_EACH(n) {
    unroll<L::kCount>(
        ONNXPRESS_EACH(t) { P::store(line(n.value) + kLine * t.value, L::whole(sum_of<P>(sum[n.value][t.value]))); });
  });
}

// All bundles of a part.
template <class L>
void multiply_bundles(const BlockSparseWeight& w, const SparseRows& rows, std::int64_t output, const std::uint8_t* x,
                      std::uint8_t* sums) {
  constexpr std::int64_t kMaxBundles = kOutputsOfPart / 4;
  const std::int64_t left = (w.N - output + 3) / 4, bundles = left < kMaxBundles ? left : kMaxBundles;
  std::int64_t bundle = output / kOutputsOfPart * kMaxBundles * w.chunks;
  for (std::int64_t chunk = 0; chunk < w.chunks; ++chunk) {
    for (const std::int64_t end = bundle + bundles; bundle < end; ++bundle) {
      const std::int64_t step = w.row_groups[bundle], count = w.row_groups[bundle + 1] - step;
      if (count == 0 && chunk != 0) continue;
      std::uint8_t outputs[4];
      memcpy(outputs, w.bundled + 4 * bundle, sizeof outputs);
      const auto start = [&](int n, const std::uint8_t* line) __attribute__((always_inline)) {
        return chunk == 0 ? L::start(rows, output + n) : L::Words::load(line);
      };
      multiply_bundle<L>({x, w.groups + 4 * step, count}, w.strips + 16 * step, outputs, start, sums);
    }
  }
}

struct InOrder {
  std::uint32_t groups[kChunk];
};
constexpr InOrder make_in_order() {
  InOrder order{};
  for (std::uint32_t i = 0; i < kChunk; ++i) order.groups[i] = 64 * i;
  return order;
}
constexpr InOrder kInOrder = make_in_order();

// Groups of any four k are put together first, some at a time.
template <class L>
void gather_block_row(const BlockSparseWeight& w, const SparseRows& rows, std::int64_t block_row, const std::uint8_t* x,
                      std::uint8_t* chunk, std::uint8_t* sums) {
  const std::uint32_t* ks = w.groups + 4 * w.row_groups[block_row];
  const std::int64_t all = w.row_groups[block_row + 1] - w.row_groups[block_row];
  for (std::int64_t begin = 0; begin == 0 || begin < all; begin += kChunk) {
    const std::int64_t count = all - begin < kChunk ? all - begin : kChunk;
    for (std::int64_t group = 0; group < count; ++group, ks += 4) L::gather(x, ks, chunk + L::kBytes * group);
    multiply_block_row<L>(w, rows, block_row, {chunk, kInOrder.groups, count}, begin, sums);
  }
}

// From the sums of the outputs from one on to values.
template <class S, class P, int Tiles>
void finish_part(const BlockSparseProblem& p, const SparseRows& rows, const SparseTask& task, std::int64_t begin,
                 std::int64_t end) {
  const std::int64_t N = p.weight->N, most = p.floats_out != nullptr ? kTile : 4 * kTile;
  if (end > N) end = N;
  for (std::int64_t t = 0; t < Tiles; ++t) {
    const std::int64_t first_row = task.first_row + 16 * t;
    OutputRange range{task.sums + kLine * t, kLine * Tiles, 0, p.M - first_row, N};
    for (std::int64_t output = begin; output < end; output += most, range.sums += most * range.step) {
      range.count = end - output < most ? end - output : most;
      const Values<S, P> values(p, rows, first_row, output);
      const std::int64_t at = first_row * N + output;
      if (p.floats_out != nullptr) {
        finish_floats<S>(range, values, p.activation != Activation::kNone, p.floats_out + at);
      } else {
        finish_codes<S>(range, values, output_format(p), p.codes_out + at);
      }
    }
  }
}

template <class S, class L>
void multiply_task(const BlockSparseProblem& p, const SparseRows& rows, const SparseTask& task) {
  const BlockSparseWeight& w = *p.weight;
  const std::uint8_t* x = rows.words + task.first_row * rows.row_bytes;
  for (std::int64_t part = task.block_row; part < task.end; part += task.part) {
    const std::int64_t end = task.end - part < task.part ? task.end : part + task.part;
    std::uint8_t* sums = task.sums;
    if (w.bundles) multiply_bundles<L>(w, rows, part, x, sums);
    for (std::int64_t block_row = part; block_row < end && !w.bundles;
         ++block_row, sums += kLine * L::kCount * w.block_n) {
      if (w.gathers) {
        if constexpr (L::Words::kGathers) gather_block_row<L>(w, rows, block_row, x, task.chunk, sums);
      } else {
        const std::int64_t first = w.row_groups[block_row], count = w.row_groups[block_row + 1] - first;
        multiply_block_row<L>(w, rows, block_row, {x, w.groups + first, count}, 0, sums);
      }
    }
    finish_part<S, typename L::Words, L::kCount>(p, rows, task, part * w.block_n, end * w.block_n);
  }
}

template <class S, int Count>
void multiply_whole_lines(const BlockSparseProblem& p, const SparseRows& rows, const SparseTask& task) {
  return p.weight->is_float ? multiply_task<S, WholeLines<S, FloatWords<S>, Count>>(p, rows, task)
                            : multiply_task<S, WholeLines<S, CodeWords<S>, Count>>(p, rows, task);
}

template <class S>
void sparse_multiply(const BlockSparseProblem& p, const SparseRows& rows, const SparseTask& task) {
  if constexpr (S::kHas8RowTiles) {
    if (rows.tile == 8) return multiply_task<S, HalfLines<S>>(p, rows, task);
  }
  if constexpr (S::kMaxTilesAtOnce > 1) {
    if (rows.tiles_at_once == 4) return multiply_whole_lines<S, 4>(p, rows, task);
    if (rows.tiles_at_once == 2) return multiply_whole_lines<S, 2>(p, rows, task);
  }
  multiply_whole_lines<S, 1>(p, rows, task);
}

}  // namespace
}  // namespace onnxpress
