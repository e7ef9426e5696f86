// From the sums of a block-sparse product to its outputs, of few rows and of many.
#pragma once

#include <cstdint>

#include "kernels/block_sparse_kernels.h"
#include "kernels/matmul_int8_impl.h"
#include "kernels/simd_math.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

template <class S>
__attribute__((noinline)) typename S::F32 activated(Activation activation, typename S::F32 y) {
  if (activation == Activation::kRelu) return relu<S>(y);
  return activation == Activation::kGelu ? gelu<S>(y) : gelu_tanh<S>(y);
}

inline CodeFormat output_format(const BlockSparseProblem& p) {
  return {p.output.scale, 1.0f / p.output.scale, p.output.zero_point, 0};
}

// Sums of a row at 16 outputs.
template <class S>
class FinishRow {
 public:
  FinishRow(const BlockSparseProblem& p, const SparseRows& rows)
      : p_(p), scales_(rows.scales), N_(p.weight->N), format_(output_format(p)) {}

  void operator()(std::int64_t row, std::int64_t tile, const typename S::I32& sums) const {
    const auto factor = S::mul(S::set1(scales_[row]), S::load(p_.weight->scales + tile * kTile));
    finish(row, tile, S::mul(S::to_float(sums), factor));
  }
  void operator()(std::int64_t row, std::int64_t tile, const typename S::F32& sums) const { finish(row, tile, sums); }

 private:
  void finish(std::int64_t row, std::int64_t tile, typename S::F32 y) const {
    const std::int64_t column = tile * kTile, left = N_ - column, at = row * N_ + column;
    if (p_.bias != nullptr) y = S::add(y, S::load(p_.bias + column, left));
    if (p_.activation != Activation::kNone) y = activated<S>(p_.activation, y);
    if (p_.floats_out != nullptr) {
      S::store(p_.floats_out + at, y, left);
    } else {
      S::store_codes(p_.codes_out + at, y, format_, left);
    }
  }

  const BlockSparseProblem& p_;
  const float* const scales_;
  const std::int64_t N_;
  const CodeFormat format_;
};

// From sums of outputs at 16 rows to values. All of it is copied, and inlined, so that no store can change it.
template <class S, class P>
class Values {
 public:
  Values(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t first_row, std::int64_t output)
      : scales_(p.weight->scales + output),
        bias_(p.bias != nullptr ? p.bias + output : nullptr),
        activation_(p.activation) {
    if (rows.scales != nullptr) row_scales_ = S::load(rows.scales + first_row);
  }

  __attribute__((always_inline)) typename S::F32 before_activation(const std::uint8_t* line, std::int64_t n) const {
    const auto y = P::value(P::load(line), row_scales_, scales_[n]);
    return bias_ != nullptr ? S::add(y, S::set1(bias_[n])) : y;
  }
  __attribute__((always_inline)) typename S::F32 operator()(const std::uint8_t* line, std::int64_t n) const {
    const auto y = before_activation(line, n);
    return activation_ == Activation::kNone ? y : activated<S>(activation_, y);
  }

 private:
  const float *const scales_, *const bias_;
  const Activation activation_;
  typename S::F32 row_scales_{};
};

// The lines of sums of some outputs, and where their values go in 16 rows, of which there are `rows`.
struct OutputRange {
  std::uint8_t* sums;
  std::int64_t step;  // from line to line
  std::int64_t count;
  std::int64_t rows;
  std::int64_t row_size;  // N
};

inline auto lines(const std::uint8_t* from, std::int64_t step) {
  return [=](std::int64_t i) { return from + i * step; };
}

// At most 16 outputs.
template <class S, class V>
__attribute__((always_inline)) inline void finish_floats(const OutputRange& range, const V& values, bool are_active,
                                                         float* to) {
  const auto line = lines(range.sums, range.step);
  const auto use = [&](std::int64_t row, const typename S::I32& words) __attribute__((always_inline)) {
    if (row < range.rows) S::store(to + row * range.row_size, S::as_floats(words), range.count);
  };
  if (range.count == kTile && !are_active) {
    S::for_each_transposed(
        [&](std::int64_t n) __attribute__((always_inline)) { return S::as_ints(values.before_activation(line(n), n)); },
        use);
    return;
  }
  for (std::int64_t n = 0; n < range.count; ++n) S::store(range.sums + n * range.step, values(line(n), n));
  S::for_each_transposed([&](std::int64_t n) { return S::load_ints(line(n)); }, use);
}

// At most 64 outputs. Codes of four make a word, that of a row's.
template <class S, class V>
__attribute__((always_inline)) inline void finish_codes(const OutputRange& range, const V& values,
                                                        const CodeFormat format, std::uint8_t* to) {
  const auto line = lines(range.sums, range.step);
  std::int64_t n = 0;
  for (; n + 4 <= range.count; n += 4) {
    typename S::F32 y[4];
    unroll<4>(ONNXPRESS_EACH(i) { y[i.value] = values(line(n + i.value), n + i.value); });
    S::store(range.sums + n * range.step, S::pack_codes(y, format));
  }
  if (n < range.count) {
    typename S::F32 y[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
    for (std::int64_t i = 0; n + i < range.count; ++i) y[i] = values(line(n + i), n + i);
    S::store(range.sums + n * range.step, S::pack_codes(y, format));
  }
  S::for_each_transposed([&](std::int64_t i) { return S::load_ints(line(4 * i)); },
                         [&](std::int64_t row, const typename S::I32& words) __attribute__((always_inline)) {
                           if (row < range.rows) S::store_words(to + row * range.row_size, words, range.count);
                         });
}

}  // namespace
}  // namespace onnxpress
