// cached_attention in AMX tiles: 16 rows x 16 columns x 32 k of bfloat16 an instruction. A float32 is the sum of two
// bfloat16, x = high + low, to 2^-17 of it; of the product of two such sums all but low times low is computed, so that
// answers are those of float32 to about 2^-16.
#include "kernels/amx_tiles.h"
#include "kernels/attention_avx512.h"
#include "kernels/cached_attention_impl.h"
#include "kernels/tile.h"

namespace onnxpress {
namespace {

using S = Avx512Attention;

constexpr TileConfig kConfig;

constexpr std::int64_t kKeys = 128;        // at a time: their scores of all rows lie in the L1 cache
constexpr std::int64_t kPair = 32;         // rows or columns of two tiles, and k of one
constexpr std::int64_t kTileValues = 512;  // bfloat16 of a tile
constexpr std::int64_t kBoth = 2 * kTileValues;
static_assert(kPair == kPackedKeys && kAttentionRows % kPair == 0 && kKeys % kPair == 0);

struct Halves {
  __m256i high, low;
};

Halves split(__m512 x) {
  const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  const __m512 rounded = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  return {high, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_sub_ps(x, rounded)))};
}

// A row, with zeros up to `padded`.
void split_row(const float* x, std::int64_t count, std::int64_t padded, std::uint16_t* high, std::uint16_t* low) {
  for (std::int64_t i = 0; i < padded; i += kVector) {
    const Halves halves = split(i < count ? S::load(x + i, count - i) : S::zero());
    _mm256_store_si256(reinterpret_cast<__m256i*>(high + i), halves.high);
    _mm256_store_si256(reinterpret_cast<__m256i*>(low + i), halves.low);
  }
}

// Pairs of numbers of 16 keys, side by side: for each 32 of a head a tile of what is high and one of what is low.
void pack_keys(const float* keys, std::int64_t count, std::int64_t head_size, std::uint16_t* out) {
  const std::int64_t padded = packed_width(head_size);
  alignas(64) std::uint16_t halves[2][kVector][kMaxHeadSize] = {};
  for (std::int64_t key = 0; key < count && key < kVector; ++key) {
    split_row(keys + key * head_size, head_size, padded, halves[0][key], halves[1][key]);
  }
  for (std::int64_t i = 0; i < padded; i += kPair) {
    for (const auto& half : halves) {
      S::transpose(reinterpret_cast<const float*>(half[0] + i), kMaxHeadSize / 2, kVector,
                   reinterpret_cast<float*>(out), kVector);
      out += kTileValues;
    }
  }
}

__m512i pair_of(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// Pairs of 32 keys, channel by channel: for each 16 of a head a tile of what is high and one of what is low.
void pack_values(const float* values, std::int64_t count, std::int64_t head_size, std::uint16_t* out) {
  const auto load = [&](std::int64_t key, std::int64_t i) {
    return key < count && i < head_size ? S::load(values + key * head_size + i, head_size - i) : S::zero();
  };
  for (std::int64_t i = 0; i < packed_width(head_size); i += kVector, out += kBoth) {
    for (std::int64_t key = 0; key < kPackedKeys; key += 2) {
      const Halves even = split(load(key, i)), odd = split(load(key + 1, i));
      std::uint16_t* line = out + key * kVector;
      _mm512_store_si512(line, pair_of(even.high, odd.high));
      _mm512_store_si512(line + kTileValues, pair_of(even.low, odd.low));
    }
  }
}

void pack(const float* keys, const float* values, std::int64_t count, std::int64_t head_size, std::uint16_t* key_tiles,
          std::uint16_t* value_tiles) {
  pack_keys(keys, count, head_size, key_tiles);
  pack_keys(keys + kVector * head_size, count - kVector, head_size, key_tiles + packed_width(head_size) * kPackedKeys);
  pack_values(values, count, head_size, value_tiles);
}

// Rows of a product as bfloat16, high and low.
struct SplitRows {
  const std::uint16_t *high, *low;
  std::int64_t stride;
};

// Tiles of two times 16 columns, of k and, so much further, of the next 32.
struct ColumnTiles {
  const std::uint16_t *one, *two;
  std::int64_t step;
};

// c = a b, or c + a b: 32 rows by 32 columns.
void multiply_tiles(const SplitRows& a, const ColumnTiles& b, std::int64_t steps, float* c, std::int64_t c_stride,
                    bool adds) {
  const std::int64_t c_bytes = c_stride * 4, a_bytes = a.stride * 2;
  float* lower = c + kTileRows * c_stride;
  if (adds) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + kTile, c_bytes);
    _tile_loadd(2, lower, c_bytes);
    _tile_loadd(3, lower + kTile, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    const std::uint16_t *high = a.high + step * kPair, *low = a.low + step * kPair;
    const std::uint16_t *one = b.one + step * b.step, *two = b.two + step * b.step;
    _tile_loadd(4, high, a_bytes);
    _tile_loadd(6, one + kTileValues, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, two + kTileValues, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, high + kTileRows * a.stride, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(6, one, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, two, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, low, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, low + kTileRows * a.stride, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + kTile, c_bytes);
  _tile_stored(2, lower, c_bytes);
  _tile_stored(3, lower + kTile, c_bytes);
}

// Rows beyond the last are computed from what is there and dropped.
void attend_amx(const AttentionTile& tile) {
  alignas(64) std::uint16_t query_high[kAttentionRows * kMaxHeadSize], query_low[kAttentionRows * kMaxHeadSize];
  alignas(64) std::uint16_t part_high[kAttentionRows * kKeys], part_low[kAttentionRows * kKeys];
  alignas(64) float scores[kAttentionRows * kKeys], sums[kAttentionRows * kMaxHeadSize];
  const std::int64_t width = packed_width(tile.head_size), steps = width / kPair;
  const SplitRows queries{query_high, query_low, width}, parts{part_high, part_low, kKeys};
  AttentionTile padded = tile;
  padded.head_size = width;
  padded.sums = sums;
  start_rows(padded);
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    split_row(tile.queries + r * tile.head_size, tile.head_size, width, query_high + r * width, query_low + r * width);
  }
  const auto from = [](const SplitRows& rows, std::int64_t row) {
    return SplitRows{rows.high + row * rows.stride, rows.low + row * rows.stride, rows.stride};
  };
  _tile_loadconfig(&kConfig);
  for (std::int64_t block = tile.begin / kPair * kPair; block < tile.end; block += kKeys) {
    const std::int64_t count = tile.end - block < kKeys ? tile.end - block : kKeys;
    const std::int64_t columns = (count + kPair - 1) / kPair * kPair;
    const std::uint16_t* keys = tile.key_tiles + block * width * 2;
    const std::uint16_t* values = tile.value_tiles + block * width * 2;
    for (std::int64_t row = 0; row < tile.rows; row += kPair) {
      for (std::int64_t key = 0; key < columns; key += kPair) {
        const std::uint16_t* one = keys + key * width * 2;
        multiply_tiles(from(queries, row), {one, one + steps * kBoth, kBoth}, steps, scores + row * kKeys + key, kKeys,
                       false);
      }
    }
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      soften_row<S>(padded, r, block, count, scores + r * kKeys);
      split_row(scores + r * kKeys, count, columns, part_high + r * kKeys, part_low + r * kKeys);
    }
    for (std::int64_t row = 0; row < tile.rows; row += kPair) {
      for (std::int64_t i = 0; i < width; i += kPair) {
        const std::uint16_t* one = values + i * kPair * 2;
        multiply_tiles(from(parts, row), {one, one + kBoth, 2 * kPair * width}, columns / kPair, sums + row * width + i,
                       width, true);
      }
    }
  }
  _tile_release();
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    memcpy(tile.sums + r * tile.head_size, sums + r * width, static_cast<std::size_t>(tile.head_size) * sizeof(float));
  }
}

}  // namespace

// From a pair of tiles of rows on it pays to pack keys and values.
extern constexpr AttentionKernels attention_amx{"amx", kPair, kAttentionRows, pack, attend_amx};

}  // namespace onnxpress
