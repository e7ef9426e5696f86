// The activation of finished outputs, and the gate that multiplies them, while they are in the cache.
#pragma once

#include <cstdint>

#include "kernels/matmul_nbits_tiles.h"
#include "kernels/simd_math.h"

namespace onnxpress {
namespace {

template <class S, class F>
void activate_with(const NBitsProblem& p, std::int64_t first_tile, std::int64_t tiles, std::int64_t begin,
                   std::int64_t end, const F& activation) {
  const std::int64_t N = p.weight->N;
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t tile = first_tile; tile < first_tile + tiles; ++tile) {
      const std::int64_t at = row * N + tile * kTile, left = N - tile * kTile;
      auto y = activation(S::load(p.Y + at, left));
      if (p.gate != nullptr) y = S::mul(y, S::load(p.gate + at, left));
      S::store(p.Y + at, y, left);
    }
  }
}

template <class S>
void activate(const NBitsProblem& p, std::int64_t first_tile, std::int64_t tiles, std::int64_t begin,
              std::int64_t end) {
  using F32 = typename S::F32;
  const auto with = [&](const auto& activation) { activate_with<S>(p, first_tile, tiles, begin, end, activation); };
  switch (p.activation) {
    case Activation::kNone:
      return with([](F32 x) __attribute__((always_inline)) { return x; });
    case Activation::kRelu:
      return with([](F32 x) __attribute__((always_inline)) { return relu<S>(x); });
    case Activation::kSilu:
      return with([](F32 x) __attribute__((always_inline)) { return silu<S>(x); });
    case Activation::kGelu:
      return with([](F32 x) __attribute__((always_inline)) { return gelu<S>(x); });
    case Activation::kGeluTanh:
      return with([](F32 x) __attribute__((always_inline)) { return gelu_tanh<S>(x); });
  }
}

}  // namespace
}  // namespace onnxpress
