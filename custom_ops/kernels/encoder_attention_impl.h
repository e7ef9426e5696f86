// The attention of encoder_layer on codes of 8 bits, written once over a vector type.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/encoder_layer_kernels.h"
#include "kernels/encoder_product.h"
#include "kernels/encoder_rows.h"
#include "kernels/simd_math.h"

namespace onnxpress {
namespace {

constexpr std::uint8_t kMiddle = 128;  // what codes of queries are moved up by
constexpr float kLog2OfE = 1.44269504f;

// Four rows of 16 codes, column by column.
inline void interleave(const std::int8_t (&rows)[4][kTile], std::int8_t* out) {
  using Bytes = std::uint8_t __attribute__((vector_size(kTile)));
  using Words = std::uint32_t __attribute__((vector_size(4 * kTile)));
  Words words{};
  for (int i = 0; i < 4; ++i) {
    Bytes row;
    memcpy(&row, rows[i], sizeof row);
    words |= __builtin_convertvector(row, Words) << 8 * i;
  }
  memcpy(out, &words, sizeof words);
}

template <class S>
void pack_keys(const EncoderRun& run, const Sequence& sequence, std::int64_t first_tile, std::int64_t head) {
  const EncoderLayer& layer = *run.problem->layer;
  const std::int64_t inner = layer.heads * layer.width, padded = run.padded_width;
  alignas(64) std::int8_t codes[kMaxHeadWidth];
  for (std::int64_t key = 0; key < sequence.tiles * kTile; ++key) {
    const std::int64_t at = first_tile * kTile + key;
    float scale = 0;
    if (key < sequence.count) {
      const float* k = run.qkv + (sequence.begin + key) * 3 * inner + inner + head * layer.width;
      scale = round_signed<S>(k, layer.width, codes);
    } else {
      memset(codes, 0, static_cast<std::size_t>(padded));
    }
    run.key_scales[at] = scale;
    std::int8_t* out = run.keys + at / kTile * padded * kTile + at % kTile * 4;
    for (std::int64_t i = 0; i < padded; i += 4) memcpy(out + i * kTile, codes + i, 4);
  }
  constexpr std::uint8_t kOnes[4] = {1, 1, 1, 1};
  for (std::int64_t tile = first_tile; tile < first_tile + sequence.tiles; ++tile) {
    const std::int8_t* line = run.keys + tile * padded * kTile;
    typename S::I32 sum = S::zero_int();
    for (std::int64_t i = 0; i < padded; i += 4) {
      sum = S::dot(sum, S::activations(kOnes), S::weights(line + i * kTile));
    }
    memcpy(run.key_sums + tile * kTile, &sum, sizeof sum);
  }
}

// The scales of 16 channels of the values, all of a head; whether they are all finite.
template <class S>
bool scale_values(const float* values, std::int64_t stride, std::int64_t count, std::int64_t left, float* scales) {
  auto peak = S::set1(kLeast), poison = S::zero();
  for (std::int64_t key = 0; key < count; ++key) {
    const auto v = S::load(values + key * stride, left);
    peak = S::max(S::max(v, negated<S>(v)), peak);
    poison = S::fma(v, S::zero(), poison);
  }
  S::store(scales, S::mul(peak, S::set1(1.0f / kMost)));
  alignas(64) float bad[kTile];
  S::store(bad, poison);
  return fold(bad, sum_of) == 0;
}

template <class S>
void pack_values(const EncoderRun& run, const Sequence& sequence, std::int64_t first_tile, std::int64_t head) {
  const EncoderLayer& layer = *run.problem->layer;
  const std::int64_t inner = layer.heads * layer.width, stride = 3 * inner, keys = sequence.tiles * kTile;
  const float* values = run.qkv + sequence.begin * stride + 2 * inner + head * layer.width;
  float* scales = run.value_scales + ((&sequence - run.sequences) * layer.heads + head) * run.padded_width;
  std::int8_t* out = run.values + first_tile * kTile * run.padded_width;
  for (std::int64_t channel = 0; channel < run.padded_width; channel += kTile, out += keys * kTile) {
    const std::int64_t left = layer.width - channel;
    if (!scale_values<S>(values + channel, stride, sequence.count, left, scales + channel)) {
      for (std::int64_t i = 0; i < kTile; ++i) scales[channel + i] = kNotANumber;
      memset(out, 0, static_cast<std::size_t>(keys * kTile));
      continue;
    }
    const auto factors = S::div(S::set1(1.0f), S::load(scales + channel));
    for (std::int64_t key = 0; key < keys; key += 4) {
      alignas(64) std::int8_t rows[4][kTile] = {};
      for (std::int64_t i = 0; i < 4 && key + i < sequence.count; ++i) {
        S::quantize(values + (key + i) * stride + channel, left, factors, rows[i], S::zero_int());
      }
      interleave(rows, out + key * kTile);
    }
  }
}

template <class S>
void pack_head(const EncoderRun& run, const Sequence& sequence, std::int64_t head) {
  const std::int64_t first_tile = sequence.first_tile + head * sequence.tiles;
  pack_keys<S>(run, sequence, first_tile, head);
  pack_values<S>(run, sequence, first_tile, head);
}

// Scores of a row, to the base 2, to codes of 255ths of 2^(score - largest); the inverse of their sum. Where `total` is
// asked for, scores become what was rounded to codes, and it their sum.
template <class S>
float soften(float* scores, std::int64_t keys, std::uint8_t* codes, float* total) {
  // Two at a time: one waits for another.
  auto peak = S::load(scores), other = peak;
  std::int64_t seen = kTile;
  for (; seen + 2 * kTile <= keys; seen += 2 * kTile) {
    peak = S::max(peak, S::load(scores + seen));
    other = S::max(other, S::load(scores + seen + kTile));
  }
  if (seen < keys) peak = S::max(peak, S::load(scores + seen));
  peak = S::max(peak, other);
  alignas(64) float lanes[kTile];
  S::store(lanes, peak);
  const auto largest = S::set1(fold(lanes, most_of));
  auto sum_of_all = S::zero();
  for (std::int64_t key = 0; key < keys; key += kTile) {
    const auto e = near_exp2_255<S>(S::sub(S::load(scores + key), largest));
    sum_of_all = S::add(sum_of_all, e);
    S::store_bytes(codes + key, e);
    if (total != nullptr) S::store(scores + key, e);
  }
  const std::int64_t end = (keys + kLine - 1) / kLine * kLine;
  memset(codes + keys, 0, static_cast<std::size_t>(end - keys));
  typename S::I32 sum = S::zero_int();
  for (std::int64_t key = 0; key < end; key += kLine) sum = S::add_line(sum, codes + key);
  S::store(lanes, sum_of_all);
  const float all = fold(lanes, sum_of);
  if (total != nullptr) *total = all;
  return is_finite(all) ? 1.0f / static_cast<float>(S::total(sum)) : kNotANumber;
}

// Adds what a query takes of each key, which is its part of the total. The row is overwritten.
template <class S>
void add_received(float* row, std::int64_t count, float total, std::uint64_t* received) {
  if (!is_finite(total)) {
    for (std::int64_t key = 0; key < count; ++key) received[key] |= kPoisoned;
    return;
  }
  // From 2^23 on numbers of float32 are one apart: their lowest bits are the sum as an integer.
  constexpr float kBase = 8388608.0f;
  constexpr std::uint32_t kBitsOfBase = 0x4b000000;
  const auto factor = S::set1(static_cast<float>(kWhole) / total), base = S::set1(kBase);
  for (std::int64_t key = 0; key < count; key += kTile) S::store(row + key, S::fma(S::load(row + key), factor, base));
  for (std::int64_t key = 0; key < count; ++key) {
    std::uint32_t bits;
    memcpy(&bits, row + key, sizeof bits);
    received[key] += bits - kBitsOfBase;
  }
}

// Rows [first, first + count) of the scratch, which are queries of this sequence from `begin` on, to the context.
template <class S>
void attend_head(const EncoderRun& run, const EncoderScratch& scratch, const Sequence& sequence, std::int64_t head,
                 std::int64_t first, std::int64_t count, std::int64_t begin) {
  const EncoderLayer& layer = *run.problem->layer;
  const std::int64_t inner = layer.heads * layer.width, width = layer.width, padded = run.padded_width;
  const std::int64_t first_tile = sequence.first_tile + head * sequence.tiles, keys = sequence.tiles * kTile;
  for (std::int64_t row = first; row < first + count; ++row) {
    alignas(64) std::int8_t codes[kMaxHeadWidth];
    const float* q = run.qkv + (begin + row - first) * 3 * inner + head * width;
    scratch.scales[row] = round_signed<S>(q, width, codes) * (layer.scale * kLog2OfE);
    scratch.zero_points[row] = kMiddle;
    std::uint8_t* line = scratch.codes + row * scratch.code_bytes;
    for (std::int64_t i = 0; i < padded; ++i) line[i] = static_cast<std::uint8_t>(codes[i] + kMiddle);
    memset(line + padded, 0, static_cast<std::size_t>((padded + kLine - 1) / kLine * kLine - padded));
  }
  const Columns scores{run.keys + first_tile * kTile * padded, padded,  run.key_sums + first_tile * kTile,
                       run.key_scales + first_tile * kTile,    nullptr, keys};
  multiply_rows<S>(scores, scratch, first, count, scratch.scores, scratch.score_stride);
  for (std::int64_t row = first; row < first + count; ++row) {
    float* of_row = scratch.scores + row * scratch.score_stride;
    for (std::int64_t key = sequence.count; key < keys; ++key) of_row[key] = -__builtin_inff();
    const bool asked = scratch.received != nullptr;
    float total = 0;
    scratch.scales[row] = soften<S>(of_row, keys, scratch.codes + row * scratch.code_bytes, asked ? &total : nullptr);
    if (asked) add_received<S>(of_row, sequence.count, total, scratch.received + sequence.begin);
  }
  const float* scales = run.value_scales + ((&sequence - run.sequences) * layer.heads + head) * padded;
  const Columns values{run.values + first_tile * kTile * padded, keys, nullptr, scales, nullptr, width};
  multiply_rows<S>(values, scratch, first, count, scratch.context + head * width, inner);
}

// The context of rows [begin, end), which may be of several sequences.
template <class S>
void attend(const EncoderRun& run, const EncoderScratch& scratch, std::int64_t begin, std::int64_t end) {
  for (std::int64_t index = 0; index < run.sequence_count; ++index) {
    const Sequence& sequence = run.sequences[index];
    const std::int64_t sequence_end = sequence.begin + sequence.count;
    const std::int64_t from = sequence.begin > begin ? sequence.begin : begin;
    const std::int64_t to = sequence_end < end ? sequence_end : end;
    if (from >= to) continue;
    for (std::int64_t head = 0; head < run.problem->layer->heads; ++head) {
      attend_head<S>(run, scratch, sequence, head, from - begin, to - from, from);
    }
  }
}

}  // namespace
}  // namespace onnxpress
