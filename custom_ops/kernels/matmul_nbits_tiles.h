// What the kernels of MatMulNBits share: the packed weight as vectors, and blocks of sums.
//
// Everything in the files that include this has internal linkage, and nothing comes from the standard library: the
// linker keeps one copy of an inline function for all, and a copy compiled with AVX-512 must never serve a CPU without
// it.
#pragma once

#include <cstdint>

#include "kernels/matmul_nbits_kernels.h"
#include "kernels/prefetch.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

constexpr int kGroups = 8;          // of 4 k in a span
constexpr std::int64_t kLine = 64;  // bytes of a group: 16 columns x 4 k

// Group G of a packed span: 64 unsigned codes.
template <class S, int Bits, int G>
__attribute__((always_inline)) inline typename S::U8 load_group(const std::uint8_t* span) {
  if constexpr (Bits == 8) {
    return S::load(span + kLine * G);
  } else {
    constexpr bool k4 = (Bits & 4) != 0, k2 = (Bits & 2) != 0, k1 = (Bits & 1) != 0;
    constexpr int kBase2 = k4 ? 4 : 0;
    constexpr int kBase1 = kBase2 + (k2 ? 2 : 0);
    typename S::U8 codes{};
    if constexpr (k4) codes = S::template field<G / 4 * 4>(S::load(span + kLine * (G % 4)), 15);
    if constexpr (k2) {
      const auto part = S::template field<G / 2 * 2 - kBase2>(S::load(span + kLine * (kBase2 + G % 2)), 3 << kBase2);
      codes = k4 ? S::bit_or(codes, part) : part;
    }
    if constexpr (k1) {
      codes = S::bit_or(codes, S::template field<G - kBase1>(S::load(span + kLine * kBase1), 1 << kBase1));
    }
    return codes;
  }
}

inline const std::uint8_t* span_of(const NBitsWeight& w, std::int64_t tile, std::int64_t span) {
  return w.codes + (tile * (w.padded_k / kSpan) + span) * kLine * w.bits;
}

// The lines of a span so many bytes ahead: within a span they are read out of order, which the CPU does not foresee.
constexpr std::int64_t kAhead = 4096;
__attribute__((always_inline)) inline void prefetch_ahead(const std::uint8_t* span, int lines) {
  prefetch_to_l2(span + kAhead, kLine * lines);
}

template <class S>
inline typename S::F32 scale_of(const NBitsWeight& w, std::int64_t tile, std::int64_t block) {
  const std::int64_t at = (tile * w.blocks + block) * kTile;
  if (w.half_scales != nullptr) return S::load_half(w.half_scales + at);
  if (w.bfloat16_scales != nullptr) return S::load_bfloat16(w.bfloat16_scales + at);
  if (w.exponents != nullptr) return S::load_exponents(w.exponents + at);
  return S::load(w.scales + at);
}

template <class S>
inline typename S::F32 zero_point_of(const NBitsWeight& w, std::int64_t tile, std::int64_t block) {
  const std::int64_t at = (tile * w.blocks + block) * kTile;
  if (w.zero_points != nullptr) return S::load_bytes(w.zero_points + at);
  if (w.float_zero_points != nullptr) return S::load(w.float_zero_points + at);
  return S::set1(static_cast<float>(1 << (w.bits - 1)));
}

inline bool symmetric(const NBitsWeight& w) { return w.zero_points == nullptr && w.float_zero_points == nullptr; }

// What an output starts from: the bias, or zero.
template <class S>
inline typename S::F32 bias_of(const NBitsProblem& p, std::int64_t column) {
  return p.bias != nullptr ? S::load(p.bias + column, p.weight->N - column) : S::zero();
}

// The sums of Rows x Tiles outputs before the segment that begins at k: what they start from, or what is stored so far.
template <class S, int Rows, int Tiles>
__attribute__((always_inline)) inline void load_sums(const NBitsProblem& p, std::int64_t tile, std::int64_t row,
                                                     std::int64_t k, typename S::F32 (&y)[Rows][Tiles]) {
  const std::int64_t N = p.weight->N;
  ONNXPRESS_UNROLLED for (int i = 0; i < Rows; ++i) {
    ONNXPRESS_UNROLLED for (int t = 0; t < Tiles; ++t) {
      const std::int64_t column = (tile + t) * kTile;
      y[i][t] = k == 0 ? bias_of<S>(p, column) : S::load(p.Y + (row + i) * N + column, N - column);
    }
  }
}

template <class S, int Rows, int Tiles>
__attribute__((always_inline)) inline void store_sums(const NBitsProblem& p, std::int64_t tile, std::int64_t row,
                                                      const typename S::F32 (&y)[Rows][Tiles]) {
  const std::int64_t N = p.weight->N;
  ONNXPRESS_UNROLLED for (int i = 0; i < Rows; ++i) {
    ONNXPRESS_UNROLLED for (int t = 0; t < Tiles; ++t) {
      const std::int64_t column = (tile + t) * kTile;
      S::store(p.Y + (row + i) * N + column, y[i][t], N - column);
    }
  }
}

}  // namespace
}  // namespace onnxpress
