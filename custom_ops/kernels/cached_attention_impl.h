// The kernel of cached_attention, written once over a vector type.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cached_attention_kernels.h"
#include "kernels/fold.h"
#include "kernels/prefetch.h"
#include "kernels/simd_math.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kVector = 16;
constexpr std::int64_t kBlock = 64;  // keys at a time: a block of 64 numbers each lies in the L1 cache
constexpr std::int64_t kFloatRows = 32;
constexpr float kLowest = -3.40282347e38f;

// c = a b, or c + a b: rows of a by K rows of b, of which the last vector has `left` columns.
template <class S, int Rows, int Vectors>
__attribute__((always_inline)) inline void multiply(const float* a, std::int64_t a_stride, const float* b,
                                                    std::int64_t b_stride, std::int64_t K, float* c,
                                                    std::int64_t c_stride, std::int64_t left, bool adds) {
  typename S::F32 sums[Rows][Vectors];
  const auto is_whole = left >= Vectors * kVector;
  unroll<Rows>(ONNXPRESS_EACH(r) {
    unroll<Vectors>(ONNXPRESS_EACH(t) {
      const float* at = c + r.value * c_stride + t.value * kVector;
      sums[r.value][t.value] = adds ? S::load(at, left - t.value * kVector) : S::zero();
    });
  });
  const auto add = [&](const auto& load) __attribute__((always_inline)) {
    for (std::int64_t k = 0; k < K; ++k, ++a, b += b_stride) {
      typename S::F32 columns[Vectors];
      unroll<Vectors>(ONNXPRESS_EACH(t) { columns[t.value] = load(b + t.value * kVector, left - t.value * kVector); });
      unroll<Rows>(ONNXPRESS_EACH(r) {
        const auto x = S::set1(a[r.value * a_stride]);
        unroll<Vectors>(
            ONNXPRESS_EACH(t) { sums[r.value][t.value] = S::fma(x, columns[t.value], sums[r.value][t.value]); });
      });
    }
  };
  if (is_whole) {
    add([](const float* p, std::int64_t) __attribute__((always_inline)) { return S::load(p); });
  } else {
    add([](const float* p, std::int64_t count) __attribute__((always_inline)) { return S::load(p, count); });
  }
  unroll<Rows>(ONNXPRESS_EACH(r) {
    unroll<Vectors>(ONNXPRESS_EACH(t) {
      S::store(c + r.value * c_stride + t.value * kVector, sums[r.value][t.value], left - t.value * kVector);
    });
  });
}

template <class S>
void multiply_rows(const float* a, std::int64_t a_stride, std::int64_t rows, const float* b, std::int64_t b_stride,
                   std::int64_t K, float* c, std::int64_t c_stride, std::int64_t columns, bool adds) {
  for_each_group_of_rows<S::kFloatRows>(0, rows, [&](auto count, std::int64_t row) {
    constexpr int kRows = decltype(count)::value, kVectors = S::template stream_tiles<kRows>();
    for (std::int64_t n = 0; n < columns; n += kVectors * kVector) {
      multiply<S, kRows, kVectors>(a + row * a_stride, a_stride, b + n, b_stride, K, c + row * c_stride + n, c_stride,
                                   columns - n, adds);
    }
  });
}

// Keys side by side: [head_size up to a multiple of 16, kBlock]. Up to 15 beyond `count` are 0. ahead(key) is called
// ahead of each vector of keys.
template <class S, class Ahead>
void turn_keys(const float* keys, std::int64_t count, std::int64_t head_size, float* out, const Ahead& ahead) {
  alignas(64) float rest[kVector * kMaxHeadSize];
  for (std::int64_t key = 0; key < count; key += kVector) {
    ahead(key);
    const float* from = keys + key * head_size;
    if (count - key < kVector) {
      memset(rest, 0, static_cast<std::size_t>(kVector * head_size) * sizeof(float));
      memcpy(rest, from, static_cast<std::size_t>((count - key) * head_size) * sizeof(float));
      from = rest;
    }
    for (std::int64_t i = 0; i < head_size; i += kVector) {
      S::transpose(from + i, head_size, head_size - i, out + i * kBlock + key, kBlock);
    }
  }
}

// softcap * tanh(x / softcap)
template <class S>
__attribute__((always_inline)) inline typename S::F32 cap(typename S::F32 x, float softcap) {
  const auto e = exp<S>(S::mul(x, S::set1(2 / softcap)));
  return S::sub(S::set1(softcap), S::div(S::set1(2 * softcap), S::add(S::set1(1.0f), e)));
}

inline void start_rows(const AttentionTile& tile) {
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    tile.peaks[r] = kLowest;
    tile.totals[r] = 0;
  }
  memset(tile.sums, 0, static_cast<std::size_t>(tile.rows * tile.head_size) * sizeof(float));
}

// The scores of row r, of keys from `block` on, to e^(score - peak); the sums so far are brought to the new peak.
template <class S>
void soften_row(const AttentionTile& tile, std::int64_t r, std::int64_t block, std::int64_t count, float* scores) {
  if (tile.softcap != 0) {
    for (std::int64_t i = 0; i < count; i += kVector) S::store(scores + i, cap<S>(S::load(scores + i), tile.softcap));
  }
  if (tile.bias[r] != nullptr) {
    const float* bias = tile.bias[r] + block;
    for (std::int64_t i = 0; i < count; i += kVector) {
      S::store(scores + i, S::add(S::load(scores + i), S::load(bias + i, count - i)));
    }
  }
  const std::int64_t end = (count + kVector - 1) / kVector * kVector;
  for (std::int64_t i = 0; i < tile.first[r] - block && i < count; ++i) scores[i] = -__builtin_inff();
  const std::int64_t seen = tile.last[r] - block < count ? tile.last[r] - block : count;
  for (std::int64_t i = seen > 0 ? seen : 0; i < end; ++i) scores[i] = -__builtin_inff();

  auto most = S::load(scores);
  most = S::max(most, S::set1(kLowest));
  for (std::int64_t i = kVector; i < end; i += kVector) most = S::max(S::load(scores + i), most);
  alignas(64) float lanes[kVector];
  S::store(lanes, most);
  const float peak = most_of(tile.peaks[r], fold(lanes, most_of));
  if (peak > tile.peaks[r]) {
    S::store(lanes, exp<S>(S::set1(tile.peaks[r] - peak)));
    const auto factor = S::set1(lanes[0]);
    float* sums = tile.sums + r * tile.head_size;
    for (std::int64_t i = 0; i < tile.head_size; i += kVector) {
      S::store(sums + i, S::mul(S::load(sums + i, tile.head_size - i), factor), tile.head_size - i);
    }
    tile.totals[r] *= lanes[0];
    tile.peaks[r] = peak;
  }
  auto sum = S::zero();
  for (std::int64_t i = 0; i < end; i += kVector) {
    const auto e = exp<S>(S::sub(S::load(scores + i), S::set1(peak)));
    S::store(scores + i, e);
    sum = S::add(sum, e);
  }
  tile.totals[r] += total_of<S>(sum);
}

template <class S>
void attend(const AttentionTile& tile) {
  alignas(64) float keys[kMaxHeadSize * kBlock];
  alignas(64) float scores[kFloatRows * kBlock];
  const std::int64_t width = tile.head_size;
  start_rows(tile);
  for (std::int64_t block = tile.begin; block < tile.end; block += kBlock) {
    const std::int64_t count = tile.end - block < kBlock ? tile.end - block : kBlock;
    // While keys are turned and multiplied, their values come from memory, and the keys of the next block.
    turn_keys<S>(tile.keys + block * width, count, width, keys, [&](std::int64_t key) __attribute__((always_inline)) {
      const std::int64_t next = block + kBlock + key;
      const auto fetch = [&](const float* rows, std::int64_t left) __attribute__((always_inline)) {
        prefetch_to_l2(rows, (left < kVector ? left : kVector) * width * 4);
      };
      fetch(tile.values + (block + key) * width, count - key);
      if (next < tile.end) fetch(tile.keys + next * width, tile.end - next);
    });
    const std::int64_t columns = (count + kVector - 1) / kVector * kVector;
    multiply_rows<S>(tile.queries, width, tile.rows, keys, kBlock, width, scores, kBlock, columns, false);
    for (std::int64_t r = 0; r < tile.rows; ++r) soften_row<S>(tile, r, block, count, scores + r * kBlock);
    multiply_rows<S>(scores, kBlock, tile.rows, tile.values + block * width, width, count, tile.sums, width, width,
                     true);
  }
}

template <class S>
constexpr AttentionKernels make_attention_kernels() {
  return {S::kName, 0, kFloatRows, nullptr, attend<S>};
}

}  // namespace
}  // namespace onnxpress
