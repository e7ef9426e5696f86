// A layer of a transformer encoder on 8-bit integers, from its input to its output, in one go:
//
//   a = softmax(scale q k' + mask) v,  q, k, v = parts of x Wqkv + bqkv, head by head     (Vaswani et al., 2017)
//   h = norm1(x + a Wo + bo)                                                norms behind the residual sums, or
//   y = norm2(h + act(h Wup + bup) Wdown + bdown)
//
//   h = x + a Wo + bo,  q, k, v of norm1(x)                                 ahead of the products (norm_first)
//   y = h + act(norm2(h) Wup + bup) Wdown + bdown
//
// What a product reads is rounded row by row: to uint8, x = s (c - z), over [min(0, min), max(0, max)] of the row. Gelu
// by erf is `near_gelu`. In the attention q and k are rounded to int8 by row and head, v by channel and sequence, to
// 127 at their largest magnitude; exp(score - largest score) is rounded to 255ths, and divided by the sum of what came
// of that. So no row depends on another sequence.
//
// Tokens that the mask leaves out are not computed: whatever else is in a batch, a token costs and gives the same.
// Their outputs are 0. A NaN or an infinity in a sequence makes all its outputs NaN.
//
// The significance is of softmax before it is rounded to codes. It is summed as integers, so that it is the same
// however rows are shared out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu_isa.h"
#include "kernels/matmul_int8.h"
#include "kernels/matmul_nbits.h"
#include "kernels/parallel.h"

namespace onnxpress {

// y = (x - mean(x)) / sqrt(variance(x) + epsilon) * scale + shift, of rows.
struct LayerNorm {
  const float* scale = nullptr;  // [H]
  const float* shift = nullptr;  // [H]
  float epsilon = 0;
};

// A product with int8 weights without zero points, no longer than kSplitK.
struct EncoderProduct {
  Int8Weight weight;
  const float* bias = nullptr;  // [N] or null
};

inline constexpr std::int64_t kMaxHeadWidth = 1024;
inline constexpr std::int64_t kMaxTokens = 1 << 16;  // of a sequence: sums of more codes could overflow

struct EncoderLayer {
  std::int64_t heads = 0, width = 0;  // of each head
  float scale = 0;                    // of the scores
  EncoderProduct qkv;                 // [H, 3 heads * width]
  EncoderProduct out;                 // [heads * width, H]
  EncoderProduct up, down;            // [H, F], [F, H]
  LayerNorm norm1, norm2;
  Activation activation = Activation::kGelu;  // kRelu, kGelu or kGeluTanh
  bool norm_first = false;

  std::int64_t H() const { return qkv.weight.K; }
  std::int64_t F() const { return up.weight.N; }
};

struct EncoderProblem {
  const EncoderLayer* layer = nullptr;
  std::int64_t batch = 0, sequence = 0;
  const float* x = nullptr;            // [batch, sequence, H]
  const std::int32_t* mask = nullptr;  // [batch, sequence], 0 where a token does not count; null: all do
  float* y = nullptr;                  // [batch, sequence, H]
  // [batch, sequence], how much of each token the queries of all heads take together, 0 of those that the mask leaves
  // out; null where nobody asks.
  float* significance = nullptr;
};

// Throws std::bad_alloc. Returns the name of the instruction set whose code ran.
const char* encoder_layer(const EncoderProblem& problem, Isa isa, const Parallel& parallel);

}  // namespace onnxpress
