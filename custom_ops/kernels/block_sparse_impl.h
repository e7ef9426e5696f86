// The kernels of block_sparse_matmul, written once over a vector type (sparse_<isa>.h) and compiled once an instruction
// set.
//
// Many rows: a line holds the words of 16 rows at one group, and a weight's word is multiplied with all of them, so
// that nothing depends on where the stored weights lie. Sums of outputs lie side by side; they are turned at the end.
// Few rows: a line holds the words of 16 outputs at one group, those that are not stored filled with zeros.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/block_sparse_finish.h"
#include "kernels/block_sparse_kernels.h"
#include "kernels/block_sparse_rows.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

// What the two types of weights do with words.
template <class S>
struct CodeWords {
  using Sum = typename S::I32;
  using Lanes = typename S::Codes;
  using Four = typename S::FourWords;
  static Sum zero() { return S::zero_int(); }
  static Sum start(const SparseRows& rows, std::int64_t output) { return S::set1(rows.starts[output]); }
  static Sum starts(const SparseRows& rows, std::int64_t output) { return S::load(rows.starts + output); }
  static Sum load(const std::uint8_t* line) { return S::load_ints(line); }
  static void store(std::uint8_t* line, const Sum& sum) { S::store(line, sum); }
  static Sum sum(const Sum& a, const Sum& b) { return S::add(a, b); }
  static typename S::F32 value(const Sum& sum, const typename S::F32& row_scales, float scale) {
    return S::mul(S::to_float(sum), S::mul(row_scales, S::set1(scale)));
  }
  static Lanes lanes(const std::uint8_t* line) { return S::codes(line); }
  static Four four(const std::uint8_t* words) { return S::four_codes(words); }
  template <int I>
  static auto word(const Four& words) {
    return S::template code_word<I>(words);
  }
  template <class W>
  static Sum add_product(const Sum& sum, const Lanes& x, const W& w) {
    return S::dot_rows(sum, x, w);
  }

  using Spread = typename S::Weights;
  static Spread expand(const std::uint8_t* words, unsigned mask) { return S::expand_codes(words, mask); }
  static Sum add_spread(const Sum& sum, const std::uint8_t* x, const Spread& w) {
    return S::dot(sum, S::activations(x), w);
  }
};

template <class S>
struct FloatWords {
  using Sum = typename S::F32;
  using Lanes = typename S::F32;
  using Four = const std::uint8_t*;
  static Sum zero() { return S::zero(); }
  static Sum start(const SparseRows&, std::int64_t) { return zero(); }
  static Sum starts(const SparseRows&, std::int64_t) { return zero(); }
  static Sum load(const std::uint8_t* line) { return S::load_floats(line); }
  static void store(std::uint8_t* line, const Sum& sum) { S::store(line, sum); }
  static Sum sum(const Sum& a, const Sum& b) { return S::add(a, b); }
  static Sum value(const Sum& sum, const typename S::F32&, float) { return sum; }
  static Lanes lanes(const std::uint8_t* line) { return S::load_floats(line); }
  static Four four(const std::uint8_t* words) { return words; }
  template <int I>
  static auto word(const Four& words) {
    return S::template float_word<I>(words);
  }
  static Sum add_product(const Sum& sum, const Lanes& x, const Lanes& w) { return S::fma(x, w, sum); }

  using Spread = typename S::F32;
  static Spread expand(const std::uint8_t* words, unsigned mask) { return S::expand_floats(words, mask); }
  static Sum add_spread(const Sum& sum, const std::uint8_t* x, const Spread& w) {
    float v;
    memcpy(&v, x, sizeof v);
    return S::fma(S::set1(v), w, sum);
  }
};

// ---- Many rows

// The groups of a block row, or some of them, that are multiplied at once.
struct SomeGroups {
  const std::uint8_t* x;
  const std::uint32_t* groups;
  std::int64_t count;
};

// `Width` outputs for 16 * Together rows. Four words of the weights at once: those of one group, of two or of four.
template <class P, int Width, int Together, class Start>
__attribute__((noinline)) void multiply_strip(const SomeGroups& some, const std::uint8_t* words, const Start& start,
                                              std::uint8_t* sums) {
  constexpr int kGroups = 4 / Width;
  // Sums of their own for groups that follow each other, until there are four: that hides the latency.
  constexpr int kSets = Width * Together < 4 ? 4 / (Width * Together) : 1;
  typename P::Sum sum[kSets][Width][Together];
  unroll<kSets>(ONNXPRESS_EACH(s) {
    unroll<Width>(ONNXPRESS_EACH(n) {
      unroll<Together>(ONNXPRESS_EACH(t) {
        const std::uint8_t* line = sums + kLine * (n.value * Together + t.value);
        sum[s.value][n.value][t.value] = s.value != 0 ? P::zero() : start(n.value, line);
      });
    });
  });
  for (std::int64_t i = 0; i < some.count; i += kGroups, words += 16) {
    const auto four = P::four(words);
    unroll<kGroups>(ONNXPRESS_EACH(g) {
      typename P::Lanes lanes[Together];
      const std::uint8_t* line = some.x + static_cast<std::size_t>(some.groups[i + g.value]) * Together;
      unroll<Together>(ONNXPRESS_EACH(t) { lanes[t.value] = P::lanes(line + kLine * t.value); });
      unroll<Width>(ONNXPRESS_EACH(n) {
        const auto word = P::template word<g.value * Width + n.value>(four);
        unroll<Together>(ONNXPRESS_EACH(t) {
          auto& total = sum[g.value % kSets][n.value][t.value];
          total = P::add_product(total, lanes[t.value], word);
        });
      });
    });
  }
  unroll<Width>(ONNXPRESS_EACH(n) {
    unroll<Together>(ONNXPRESS_EACH(t) {
      auto total = sum[0][n.value][t.value];
      if constexpr (kSets > 1) total = P::sum(total, sum[1][n.value][t.value]);
      if constexpr (kSets > 2) total = P::sum(total, P::sum(sum[2][n.value][t.value], sum[3][n.value][t.value]));
      P::store(sums + kLine * (n.value * Together + t.value), total);
    });
  });
}

// All strips of a block row, for groups from the one of number `begin` on.
template <class P, int Together>
void multiply_block_row(const BlockSparseWeight& w, const SparseRows& rows, std::int64_t block_row,
                        const SomeGroups& some, std::int64_t begin, std::uint8_t* sums) {
  const std::int64_t first = w.row_groups[block_row], all = w.row_groups[block_row + 1] - first;
  const std::uint8_t* words = w.strips + 4 * first * w.block_n;
  for (std::int64_t n = 0, width = 0; n < w.block_n; n += width) {
    width = strip_width(w.block_n - n);
    const std::uint8_t* strip = words + 4 * (all * n + begin * width);
    std::uint8_t* to = sums + kLine * Together * n;
    const std::int64_t output = block_row * w.block_n + n;
    const auto start = [&](int i, const std::uint8_t* line) __attribute__((always_inline)) {
      return begin == 0 ? P::start(rows, output + i) : P::load(line);
    };
    if (width == 4) multiply_strip<P, 4, Together>(some, strip, start, to);
    if (width == 2) multiply_strip<P, 2, Together>(some, strip, start, to);
    if (width == 1) multiply_strip<P, 1, Together>(some, strip, start, to);
  }
}

// Four outputs, each with groups of its own.
template <class P, int Together, class Start>
__attribute__((noinline)) void multiply_bundle(const SomeGroups& some, const std::uint8_t* words,
                                               const std::uint8_t (&outputs)[4], const Start& start,
                                               std::uint8_t* sums) {
  typename P::Sum sum[4][Together];
  const auto line = [&](int n) { return sums + kLine * Together * outputs[n]; };
  unroll<4>(ONNXPRESS_EACH(n) {
    unroll<Together>(
        ONNXPRESS_EACH(t) { sum[n.value][t.value] = start(outputs[n.value], line(n.value) + kLine * t.value); });
  });
  const std::uint32_t* groups = some.groups;
  for (std::int64_t i = 0; i < some.count; ++i, groups += 4, words += 16) {
    const auto four = P::four(words);
    unroll<4>(ONNXPRESS_EACH(n) {
      const std::uint8_t* x = some.x + static_cast<std::size_t>(groups[n.value]) * Together;
      const auto word = P::template word<n.value>(four);
      unroll<Together>(ONNXPRESS_EACH(t) {
        auto& total = sum[n.value][t.value];
        total = P::add_product(total, P::lanes(x + kLine * t.value), word);
      });
    });
  }
  unroll<4>(ONNXPRESS_EACH(n) {
    unroll<Together>(ONNXPRESS_EACH(t) { P::store(line(n.value) + kLine * t.value, sum[n.value][t.value]); });
  });
}

// All bundles of a part.
template <class P, int Together>
void multiply_bundles(const BlockSparseWeight& w, const SparseRows& rows, std::int64_t output, const std::uint8_t* x,
                      std::uint8_t* sums) {
  constexpr std::int64_t kMostBundles = kOutputsOfPart / 4;
  const std::int64_t left = (w.N - output + 3) / 4, bundles = left < kMostBundles ? left : kMostBundles;
  std::int64_t bundle = output / kOutputsOfPart * kMostBundles * w.chunks;
  for (std::int64_t chunk = 0; chunk < w.chunks; ++chunk) {
    for (const std::int64_t end = bundle + bundles; bundle < end; ++bundle) {
      const std::int64_t step = w.row_groups[bundle], count = w.row_groups[bundle + 1] - step;
      if (count == 0 && chunk != 0) continue;
      std::uint8_t outputs[4];
      memcpy(outputs, w.bundled + 4 * bundle, sizeof outputs);
      const auto start = [&](int n, const std::uint8_t* line) __attribute__((always_inline)) {
        return chunk == 0 ? P::start(rows, output + n) : P::load(line);
      };
      multiply_bundle<P, Together>({x, w.groups + 4 * step, count}, w.strips + 16 * step, outputs, start, sums);
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
template <class S, int Together>
void gather_block_row(const BlockSparseWeight& w, const SparseRows& rows, std::int64_t block_row, const std::uint8_t* x,
                      std::uint8_t* chunk, std::uint8_t* sums) {
  const std::uint32_t* ks = w.groups + 4 * w.row_groups[block_row];
  const std::int64_t all = w.row_groups[block_row + 1] - w.row_groups[block_row];
  for (std::int64_t begin = 0; begin == 0 || begin < all; begin += kChunk) {
    const std::int64_t count = all - begin < kChunk ? all - begin : kChunk;
    for (std::int64_t group = 0; group < count; ++group, ks += 4) {
      const std::uint8_t* lines[4];
      for (int j = 0; j < 4; ++j) lines[j] = x + static_cast<std::size_t>(ks[j] & ~3u) * Together;
      S::template gather<Together>(lines, ks, chunk + kLine * Together * group);
    }
    multiply_block_row<CodeWords<S>, Together>(w, rows, block_row, {chunk, kInOrder.groups, count}, begin, sums);
  }
}

// From the sums of the outputs from one on to values.
template <class S, class P, int Together>
void finish_part(const BlockSparseProblem& p, const SparseRows& rows, const SparsePiece& piece, std::int64_t begin,
                 std::int64_t end) {
  const std::int64_t N = p.weight->N, most = p.floats_out != nullptr ? kTile : 4 * kTile;
  if (end > N) end = N;
  for (std::int64_t t = 0; t < Together; ++t) {
    const std::int64_t first_row = piece.first_row + 16 * t;
    SomeOutputs some{piece.sums + kLine * t, kLine * Together, 0, p.M - first_row, N};
    for (std::int64_t output = begin; output < end; output += most, some.sums += most * some.step) {
      some.count = end - output < most ? end - output : most;
      const Values<S, P> values(p, rows, first_row, output);
      const std::int64_t at = first_row * N + output;
      if (p.floats_out != nullptr) {
        finish_floats<S>(some, values, p.activation != Activation::kNone, p.floats_out + at);
      } else {
        finish_codes<S>(some, values, output_format(p), p.codes_out + at);
      }
    }
  }
}

template <class S, class P, int Together>
void multiply_piece(const BlockSparseProblem& p, const SparseRows& rows, const SparsePiece& piece) {
  const BlockSparseWeight& w = *p.weight;
  const std::uint8_t* x = rows.words + piece.first_row * rows.row_bytes;
  for (std::int64_t part = piece.block_row; part < piece.end; part += piece.part) {
    const std::int64_t end = piece.end - part < piece.part ? piece.end : part + piece.part;
    std::uint8_t* sums = piece.sums;
    if (w.bundles) multiply_bundles<P, Together>(w, rows, part, x, sums);
    for (std::int64_t block_row = part; block_row < end && !w.bundles;
         ++block_row, sums += kLine * Together * w.block_n) {
      if (w.gathers) {
        gather_block_row<S, Together>(w, rows, block_row, x, piece.chunk, sums);
      } else {
        const std::int64_t first = w.row_groups[block_row], count = w.row_groups[block_row + 1] - first;
        multiply_block_row<P, Together>(w, rows, block_row, {x, w.groups + first, count}, 0, sums);
      }
    }
    finish_part<S, P, Together>(p, rows, piece, part * w.block_n, end * w.block_n);
  }
}

template <class S>
void sparse_multiply(const BlockSparseProblem& p, const SparseRows& rows, const SparsePiece& piece) {
  const bool is_float = p.weight->is_float;
  if constexpr (S::kTogether == 2) {
    if (rows.together == 2) {
      return is_float ? multiply_piece<S, FloatWords<S>, 2>(p, rows, piece)
                      : multiply_piece<S, CodeWords<S>, 2>(p, rows, piece);
    }
  }
  return is_float ? multiply_piece<S, FloatWords<S>, 1>(p, rows, piece)
                  : multiply_piece<S, CodeWords<S>, 1>(p, rows, piece);
}

// ---- Few rows

template <class S, class P, int Rows>
void multiply_few_rows(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t tile, std::int64_t row) {
  const BlockSparseWeight& w = *p.weight;
  constexpr int kSets = Rows <= 2 ? 4 : 1;
  typename P::Sum sum[kSets][Rows];
  unroll<kSets>(ONNXPRESS_EACH(s) {
    unroll<Rows>(
        ONNXPRESS_EACH(r) { sum[s.value][r.value] = s.value != 0 ? P::zero() : P::starts(rows, tile * kTile); });
  });
  const std::uint8_t* x = rows.words + row * rows.row_bytes;
  const std::uint8_t* words = w.words + 4 * w.tile_words[tile];
  std::int64_t entry = w.tile_entries[tile];
  const std::int64_t end = w.tile_entries[tile + 1];
  const auto add_entry = [&](auto set, std::int64_t at) __attribute__((always_inline)) {
    unsigned mask = w.masks[at];
    asm("" : "+r"(mask));  // else its bits are counted into half a register, whose other half must be awaited
    const auto spread = P::expand(words, mask);
    words += 4 * static_cast<std::int64_t>(__builtin_popcountll(mask));
    unroll<Rows>(ONNXPRESS_EACH(r) {
      auto& total = sum[set.value][r.value];
      total = P::add_spread(total, x + r.value * rows.row_bytes + w.entries[at], spread);
    });
  };
  for (; entry + kSets <= end; entry += kSets) {
    unroll<kSets>(ONNXPRESS_EACH(s) { add_entry(s, entry + s.value); });
  }
  for (; entry < end; ++entry) add_entry(Index<0>{}, entry);
  alignas(64) std::uint8_t lines[Rows][kLine];
  unroll<Rows>(ONNXPRESS_EACH(r) {
    auto total = sum[0][r.value];
    if constexpr (kSets > 1) total = P::sum(total, sum[1][r.value]);
    if constexpr (kSets > 2) total = P::sum(total, P::sum(sum[2][r.value], sum[3][r.value]));
    P::store(lines[r.value], total);
  });
  const FinishRow<S> finish(p, rows);
  for (int r = 0; r < Rows; ++r) finish(row + r, tile, P::load(lines[r]));
}

template <class S>
void sparse_multiply_few(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t tile, std::int64_t end) {
  for (; tile < end; ++tile) {
    for_each_group_of_rows<S>(0, p.M, [&](auto rows_at_once, std::int64_t row) {
      constexpr int kRows = decltype(rows_at_once)::value;
      if (p.weight->is_float) {
        multiply_few_rows<S, FloatWords<S>, kRows>(p, rows, tile, row);
      } else {
        multiply_few_rows<S, CodeWords<S>, kRows>(p, rows, tile, row);
      }
    });
  }
}

template <class S>
constexpr BlockSparseKernels make_block_sparse_kernels() {
  return {S::kName,           S::kTogether,          S::kFew, sparse_load_tile<S>, sparse_load_row<S>,
          sparse_multiply<S>, sparse_multiply_few<S>};
}

}  // namespace
}  // namespace onnxpress
