// Whole rows before a product and behind it: normalized, and two halves that become one.
#pragma once

#include <cstdint>

#include "kernels/fold.h"
#include "kernels/matmul_nbits_activation.h"
#include "kernels/matmul_nbits_kernels.h"

namespace onnxpress {
namespace {

template <class S>
void normalize_row(const float* x, const RmsNorm& norm, std::int64_t count, float* out) {
  auto squares = S::zero();
  for (std::int64_t i = 0; i < count; i += kTile) {
    const auto v = S::load(x + i, count - i);
    squares = S::fma(v, v, squares);
  }
  const float mean = total_of<S>(squares) / static_cast<float>(count);
  const auto factor = S::set1(1.0f / __builtin_sqrtf(mean + norm.epsilon));
  for (std::int64_t i = 0; i < count; i += kTile) {
    const auto scaled = S::mul(S::load(x + i, count - i), factor);
    S::store(out + i, S::mul(scaled, S::load(norm.scale + i, count - i)), count - i);
  }
}

template <class S>
void join_halves(const float* sums, const NBitsProblem& p, std::int64_t first, std::int64_t end, std::int64_t first_row,
                 std::int64_t end_row) {
  const std::int64_t half = p.weight->N / 2;
  with_activation<S>(p.activation, [&](const auto& activation) {
    for (std::int64_t row = first_row; row < end_row; ++row) {
      const float* low = sums + row * 2 * half;
      const float* activated = p.glu == Glu::kFirst ? low : low + half;
      const float* factors = p.glu == Glu::kFirst ? low + half : low;
      float* out = p.Y + row * half;
      for (std::int64_t i = first; i < end; i += kTile) {
        const auto y = activation(S::load(activated + i, end - i));
        S::store(out + i, S::mul(y, S::load(factors + i, end - i)), end - i);
      }
    }
  });
}

}  // namespace
}  // namespace onnxpress
