// The activation of finished outputs, the gate that multiplies them and what is added, while they are in the cache.
#pragma once

#include <cstdint>

#include "kernels/matmul_nbits_tiles.h"
#include "kernels/simd_math.h"

namespace onnxpress {
namespace {

// with(f), where f computes the activation of a vector.
template <class S, class With>
void with_activation(Activation activation, const With& with) {
  using F32 = typename S::F32;
  switch (activation) {
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

template <class S>
void activate(const NBitsProblem& p, std::int64_t first_tile, std::int64_t tiles, std::int64_t begin,
              std::int64_t end) {
  const std::int64_t N = p.weight->N;
  with_activation<S>(p.activation, [&](const auto& activation) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t tile = first_tile; tile < first_tile + tiles; ++tile) {
        const std::int64_t at = row * N + tile * kTile, left = N - tile * kTile;
        auto y = activation(S::load(p.Y + at, left));
        if (p.gate != nullptr) y = S::mul(y, S::load(p.gate + at, left));
        if (p.addend != nullptr) y = S::add(y, S::load(p.addend + at, left));
        S::store(p.Y + at, y, left);
      }
    }
  });
}

}  // namespace
}  // namespace onnxpress
