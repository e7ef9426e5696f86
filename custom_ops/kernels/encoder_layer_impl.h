// The products and norms of encoder_layer, written once over a vector type (int8_<isa>.h) and compiled once an
// instruction set.
#pragma once

#include <cstdint>

#include "kernels/encoder_attention_impl.h"
#include "kernels/encoder_layer_kernels.h"
#include "kernels/encoder_rows.h"
#include "kernels/simd_math.h"

namespace onnxpress {
namespace {

// Of x + residual, or of x alone where that is null. `out` may be any of them.
template <class S>
void layer_norm(const LayerNorm& norm, const float* x, const float* residual, std::int64_t H, float* out) {
  auto sum = S::zero();
  for (std::int64_t i = 0; i < H; i += kTile) {
    auto v = S::load(x + i, H - i);
    if (residual != nullptr) v = S::add(v, S::load(residual + i, H - i));
    S::store(out + i, v, H - i);
    sum = S::add(sum, v);
  }
  const auto mean = S::set1(total_of<S>(sum) / static_cast<float>(H));
  auto squares = S::zero();
  for (std::int64_t i = 0; i < H; i += kTile) {
    S::store(out + i, S::sub(S::load(out + i, H - i), mean), H - i);
    const auto difference = S::load(out + i, H - i);  // zeros behind the last
    squares = S::fma(difference, difference, squares);
  }
  const float variance = total_of<S>(squares) / static_cast<float>(H);
  const auto factor = S::set1(1.0f / __builtin_sqrtf(variance + norm.epsilon));
  for (std::int64_t i = 0; i < H; i += kTile) {
    const auto scaled = S::mul(S::mul(S::load(out + i, H - i), factor), S::load(norm.scale + i, H - i));
    S::store(out + i, S::add(scaled, S::load(norm.shift + i, H - i)), H - i);
  }
}

template <class S>
void add(const float* x, const float* y, std::int64_t H, float* out) {
  for (std::int64_t i = 0; i < H; i += kTile) {
    S::store(out + i, S::add(S::load(x + i, H - i), S::load(y + i, H - i)), H - i);
  }
}

template <class S>
void activate(Activation activation, float* x, std::int64_t count) {
  const auto with = [&](const auto& function) {
    for (std::int64_t i = 0; i < count; i += kTile) S::store(x + i, function(S::load(x + i, count - i)), count - i);
  };
  using F32 = typename S::F32;
  if (activation == Activation::kRelu) {
    with([](F32 y) __attribute__((always_inline)) { return relu<S>(y); });
  } else if (activation == Activation::kGelu) {
    with([](F32 y) __attribute__((always_inline)) { return near_gelu<S>(y); });
  } else {
    with([](F32 y) __attribute__((always_inline)) { return gelu_tanh<S>(y); });
  }
}

template <class S>
void project(const EncoderRun& run, const EncoderScratch& scratch, std::int64_t begin, std::int64_t end) {
  const EncoderLayer& layer = *run.problem->layer;
  const std::int64_t H = layer.H(), N = layer.qkv.weight.N;
  for (std::int64_t row = begin; row < end; ++row) {
    const float* x = run.problem->x + run.tokens[row] * H;
    if (layer.norm_first) {
      layer_norm<S>(layer.norm1, x, nullptr, H, scratch.hidden);
      x = scratch.hidden;
    }
    round_row<S>(x, layer.qkv.weight, scratch, row - begin);
  }
  multiply_rows<S>(columns_of(layer.qkv), scratch, 0, end - begin, run.qkv + begin * N, N);
}

template <class S>
void finish(const EncoderRun& run, const EncoderScratch& scratch, std::int64_t begin, std::int64_t end) {
  const EncoderProblem& p = *run.problem;
  const EncoderLayer& layer = *p.layer;
  const std::int64_t H = layer.H(), F = layer.F(), inner = layer.heads * layer.width, count = end - begin;
  float *hidden = scratch.hidden, *wide = scratch.wide;

  attend<S>(run, scratch, begin, end);
  for (std::int64_t row = 0; row < count; ++row) {
    round_row<S>(scratch.context + row * inner, layer.out.weight, scratch, row);
  }
  multiply_rows<S>(columns_of(layer.out), scratch, 0, count, hidden, H);
  for (std::int64_t row = 0; row < count; ++row) {
    float* h = hidden + row * H;
    const float* x = p.x + run.tokens[begin + row] * H;
    if (layer.norm_first) {
      add<S>(x, h, H, h);
      layer_norm<S>(layer.norm2, h, nullptr, H, wide);
    } else {
      layer_norm<S>(layer.norm1, h, x, H, h);
    }
    round_row<S>(layer.norm_first ? wide : h, layer.up.weight, scratch, row);
  }
  multiply_rows<S>(columns_of(layer.up), scratch, 0, count, wide, F);
  for (std::int64_t row = 0; row < count; ++row) {
    activate<S>(layer.activation, wide + row * F, F);
    round_row<S>(wide + row * F, layer.down.weight, scratch, row);
  }
  multiply_rows<S>(columns_of(layer.down), scratch, 0, count, wide, H);
  for (std::int64_t row = 0; row < count; ++row) {
    float* y = p.y + run.tokens[begin + row] * H;
    if (layer.norm_first) {
      add<S>(hidden + row * H, wide + row * H, H, y);
    } else {
      layer_norm<S>(layer.norm2, wide + row * H, hidden + row * H, H, y);
    }
  }
}

template <class S>
constexpr EncoderKernels make_encoder_kernels(const RowsOfTask& rows = {6, 24, 1}) {
  return {S::kName, rows, project<S>, pack_head<S>, finish<S>};
}

}  // namespace
}  // namespace onnxpress
