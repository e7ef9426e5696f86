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

template <class S>
float total_of(typename S::F32 v) {
  alignas(64) float lanes[kTile];
  S::store(lanes, v);
  return fold(lanes, sum_of);
}

// `out` may be x.
template <class S>
void layer_norm(const LayerNorm& norm, const float* x, std::int64_t H, float* out) {
  auto sum = S::zero();
  for (std::int64_t i = 0; i < H; i += kTile) sum = S::add(sum, S::load(x + i, H - i));
  const auto mean = S::set1(total_of<S>(sum) / static_cast<float>(H));
  auto squares = S::zero();
  for (std::int64_t i = 0; i < H; i += kTile) {
    S::store(out + i, S::sub(S::load(x + i, H - i), mean), H - i);
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

// The rounded rows of the scratch, `count` of them, times a weight: finish(row, column, left, y) with the bias added.
template <class S, int Rows, int Tiles, class F>
void multiply_codes(const EncoderProduct& product, const EncoderScratch& scratch, std::int64_t row, std::int64_t tile,
                    const F& finish) {
  const Int8Weight& w = product.weight;
  const std::uint8_t* x = scratch.codes + row * scratch.code_bytes;
  const std::int8_t* codes = w.codes + tile * w.padded_k * kTile;
  dot_block<S, Rows, Tiles>(
      x, scratch.code_bytes, codes, w.padded_k, [&](const auto& sums) __attribute__((always_inline)) {
        unroll<Tiles>(ONNXPRESS_EACH(t) {
          const std::int64_t column = (tile + t.value) * kTile, left = w.N - column;
          const auto offsets = S::load(w.sums + column);
          const auto scales = S::load(w.scales + column);
          const auto bias = product.bias != nullptr ? S::load(product.bias + column, left) : S::zero();
          unroll<Rows>(ONNXPRESS_EACH(r) {
            const auto zero_point = S::set1(scratch.zero_points[row + r.value]);
            const auto sum = S::to_float(S::sub(sums[r.value][t.value], S::mul(offsets, zero_point)));
            const auto factors = S::mul(S::set1(scratch.scales[row + r.value]), scales);
            finish(row + r.value, column, left, S::add(S::mul(sum, factors), bias));
          });
        });
      });
}

// A few tiles at a time, which stay in the L1 cache from one group of rows to the next.
template <class S, class F>
void multiply_rows(const EncoderProduct& product, const EncoderScratch& scratch, std::int64_t count, const F& finish) {
  const std::int64_t tiles = product.weight.tiles;
  const auto panels = [&](auto tiles_at_once, std::int64_t tile) {
    constexpr int kTiles = decltype(tiles_at_once)::value;
    for (; tile + kTiles <= tiles; tile += kTiles) {
      for_each_group_of_rows<S>(0, count, [&](auto rows, std::int64_t row) {
        multiply_codes<S, decltype(rows)::value, kTiles>(product, scratch, row, tile, finish);
      });
    }
    return tile;
  };
  constexpr int kPanel = S::template int8_tiles<S::kRows>();
  const std::int64_t rest = panels(Index<kPanel>{}, 0);
  if constexpr (kPanel > 1) panels(Index<1>{}, rest);
}

template <class S>
void project(const EncoderRun& run, const EncoderScratch& scratch, std::int64_t begin, std::int64_t end) {
  const EncoderLayer& layer = *run.problem->layer;
  const std::int64_t H = layer.H(), N = layer.qkv.weight.N;
  for (std::int64_t row = begin; row < end; ++row) {
    const float* x = run.problem->x + run.tokens[row] * H;
    if (layer.norm_first) {
      layer_norm<S>(layer.norm1, x, H, scratch.hidden);
      x = scratch.hidden;
    }
    round_row<S>(x, layer.qkv.weight, scratch, row - begin);
  }
  float* out = run.qkv + begin * N;
  multiply_rows<S>(layer.qkv, scratch, end - begin,
                   [=](std::int64_t row, std::int64_t column, std::int64_t left, typename S::F32 y)
                       __attribute__((always_inline)) { S::store(out + row * N + column, y, left); });
}

// wide = activation(rounded rows Wup + bup)
template <class S>
void widen(const EncoderLayer& layer, const EncoderScratch& scratch, std::int64_t count) {
  using F32 = typename S::F32;
  const std::int64_t F = layer.F();
  float* wide = scratch.wide;
  const auto with = [&](const auto& activation) {
    multiply_rows<S>(layer.up, scratch, count,
                     [&](std::int64_t row, std::int64_t column, std::int64_t left, F32 y)
                         __attribute__((always_inline)) { S::store(wide + row * F + column, activation(y), left); });
  };
  if (layer.activation == Activation::kRelu) {
    with([](F32 y) __attribute__((always_inline)) { return relu<S>(y); });
  } else if (layer.activation == Activation::kGelu) {
    with([](F32 y) __attribute__((always_inline)) { return near_gelu<S>(y); });
  } else {
    with([](F32 y) __attribute__((always_inline)) { return gelu_tanh<S>(y); });
  }
}

template <class S>
void finish(const EncoderRun& run, const EncoderScratch& scratch, std::int64_t begin, std::int64_t end) {
  using F32 = typename S::F32;
  const EncoderProblem& p = *run.problem;
  const EncoderLayer& layer = *p.layer;
  const std::int64_t H = layer.H(), F = layer.F(), inner = layer.heads * layer.width, count = end - begin;
  const std::int64_t* tokens = run.tokens + begin;
  float *hidden = scratch.hidden, *wide = scratch.wide;

  attend<S>(run, scratch, begin, end);
  for (std::int64_t row = 0; row < count; ++row) {
    round_row<S>(scratch.context + row * inner, layer.out.weight, scratch, row);
  }
  multiply_rows<S>(layer.out, scratch, count,
                   [=](std::int64_t row, std::int64_t column, std::int64_t left, F32 y) __attribute__((always_inline)) {
                     const F32 x = S::load(p.x + tokens[row] * H + column, left);
                     S::store(hidden + row * H + column, S::add(x, y), left);
                   });
  for (std::int64_t row = 0; row < count; ++row) {
    float* normed = layer.norm_first ? wide : hidden + row * H;
    layer_norm<S>(layer.norm_first ? layer.norm2 : layer.norm1, hidden + row * H, H, normed);
    round_row<S>(normed, layer.up.weight, scratch, row);
  }
  widen<S>(layer, scratch, count);
  for (std::int64_t row = 0; row < count; ++row) round_row<S>(wide + row * F, layer.down.weight, scratch, row);
  multiply_rows<S>(layer.down, scratch, count,
                   [=](std::int64_t row, std::int64_t column, std::int64_t left, F32 y) __attribute__((always_inline)) {
                     const F32 sum = S::add(S::load(hidden + row * H + column, left), y);
                     S::store(p.y + tokens[row] * H + column, sum, left);
                   });
  if (layer.norm_first) return;
  for (std::int64_t row = 0; row < count; ++row) {
    float* y = p.y + tokens[row] * H;
    layer_norm<S>(layer.norm2, y, H, y);
  }
}

template <class S>
constexpr EncoderKernels make_encoder_kernels() {
  return {S::kName, project<S>, pack_head<S>, finish<S>};
}

}  // namespace
}  // namespace onnxpress
