// What the two types of weights of a block-sparse product do with words.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/block_sparse_kernels.h"

namespace onnxpress {
namespace {

template <class S>
struct CodeWords {
  using Sum = typename S::I32;
  using Lanes = typename S::Codes;
  using Four = typename S::FourWords;
  static constexpr int kSums = S::kSums;
  static constexpr bool kGathers = true;
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
  static constexpr int kSums = S::kSums;
  static constexpr bool kGathers = false;  // each k is a group
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

}  // namespace
}  // namespace onnxpress
