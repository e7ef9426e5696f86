// MatMulNBits with activations as int8 on the matrix unit of AMX: 16 rows x 16 columns x 64 k an instruction.
//
// A tile of the packed weight is unpacked to signed bytes once, a segment of K at a time, and meets all rows from
// there: its lines of 16 columns x 4 k are just the rows of an AMX tile. Zero points are subtracted while unpacking,
// which fits a byte up to 7 bits. The sums of a block leave the matrix unit through a line of L1 for each row, and are
// scaled and added up in 16 registers.
#include <immintrin.h>

#include "kernels/amx_tiles.h"
#include "kernels/matmul_nbits_int8.h"
#include "kernels/simd_avx512.h"

namespace onnxpress {
namespace {

using S = Avx512;

constexpr std::int64_t kPanelK = 1024;  // 16 KiB of L1 for the panel, and for the rows that meet it

// Whether zero points are left to be subtracted from the sums.
bool corrects(const NBitsWeight& w) {
  return w.float_zero_points != nullptr || (w.bits == 8 && w.zero_points != nullptr);
}

// What the unpacked codes are short of: the middle where that goes into a byte and zero points do not.
S::F32 correction_of(const NBitsWeight& w, std::int64_t tile, std::int64_t block) {
  return S::sub(zero_point_of<S>(w, tile, block), S::set1(static_cast<float>(1 << (w.bits - 1))));
}

// The four bytes of a word, for each column.
__m512i offsets_of(const NBitsWeight& w, std::int64_t tile, std::int64_t block) {
  if (w.zero_points == nullptr || corrects(w)) return _mm512_set1_epi8(static_cast<char>(1 << (w.bits - 1)));
  const std::uint8_t* points = w.zero_points + (tile * w.blocks + block) * kTile;
  const __m512i words = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(points)));
  return _mm512_mullo_epi32(words, _mm512_set1_epi32(0x01010101));
}

template <int Bits>
void unpack(const NBitsWeight& w, std::int64_t tile, std::int64_t k, std::int64_t count, std::uint8_t* panel) {
  const std::uint8_t* span = span_of(w, tile, k / kSpan);
  const std::int64_t first = k / w.block_size, blocks = count / w.block_size;
  for (std::int64_t block = first; block < first + blocks; ++block) {
    const __m512i offsets = offsets_of(w, tile, block);
    for (std::int64_t at = 0; at < w.block_size; at += kSpan, span += kLine * Bits, panel += kLine * kGroups) {
      unroll<kGroups>(ONNXPRESS_EACH(g) {
        const __m512i codes = load_group<S, Bits, decltype(g)::value>(span);
        S::store(panel + kLine * g.value, _mm512_sub_epi8(codes, offsets));
      });
    }
  }
}

// 16 rows times one tile over the blocks of a panel. Rows from `rows` on are computed from what is there and dropped.
template <int Chunk>
void multiply_panel(const NBitsProblem& p, const QuantizedRows& a, const std::uint8_t* panel, std::int64_t tile,
                    std::int64_t row, int rows, std::int64_t k, std::int64_t count) {
  const NBitsWeight& w = *p.weight;
  alignas(64) std::int32_t sums[2][kTileRows][kTile];
  S::F32 y[kTileRows];
  const std::int64_t column = tile * kTile, left = w.N - column;
  unroll<kTileRows>(ONNXPRESS_EACH(r) {
    y[r.value] = k == 0           ? bias_of<S>(p, column)
                 : r.value < rows ? S::load(p.Y + (row + r.value) * w.N + column, left)
                                  : S::zero();
  });
  const bool corrected = corrects(w);
  const std::int8_t* codes = a.codes + row * a.row_bytes + k;
  // The matrix unit is busy with the next block while the sums of one are scaled.
  const auto start = [&](auto which) __attribute__((always_inline)) {
    constexpr bool kFirst = which.value == 0;  // GCC wants the number of a tile register spelled out
    if constexpr (kFirst) {
      _tile_zero(0);
    } else {
      _tile_zero(1);
    }
    for (std::int64_t i = 0; i < w.block_size; i += Chunk) {
      _tile_loadd(2, codes, a.row_bytes);
      _tile_loadd(3, panel, kLine);
      if constexpr (kFirst) {
        _tile_dpbssd(0, 2, 3);
      } else {
        _tile_dpbssd(1, 2, 3);
      }
      codes += Chunk;
      panel += Chunk * kTile;
    }
    if constexpr (kFirst) {
      _tile_stored(0, sums[0], kLine);
    } else {
      _tile_stored(1, sums[1], kLine);
    }
  };
  const auto finish = [&](auto which, std::int64_t block) __attribute__((always_inline)) {
    const auto scale = scale_of<S>(w, tile, block);
    const float* scale_a = a.scales + block * a.stride + row;
    unroll<kTileRows>(ONNXPRESS_EACH(r) {
      const auto factor = S::mul(scale, S::set1(scale_a[r.value]));
      y[r.value] = S::fma(_mm512_cvtepi32_ps(_mm512_load_si512(sums[which.value][r.value])), factor, y[r.value]);
    });
    if (corrected) {
      const auto offset = S::mul(scale, correction_of(w, tile, block));
      const std::int32_t* sum_a = a.sums + block * a.stride + row;
      unroll<kTileRows>(ONNXPRESS_EACH(r) {
        y[r.value] = S::fnma(offset, S::set1(scale_a[r.value] * static_cast<float>(sum_a[r.value])), y[r.value]);
      });
    }
  };
  const std::int64_t first = k / w.block_size, last = first + count / w.block_size - 1;
  std::int64_t block = first;
  start(Index<0>{});
  for (; block + 2 <= last; block += 2) {
    start(Index<1>{});
    finish(Index<0>{}, block);
    start(Index<0>{});
    finish(Index<1>{}, block + 1);
  }
  if (block < last) start(Index<1>{});
  finish(Index<0>{}, block);
  if (block < last) finish(Index<1>{}, block + 1);
  unroll<kTileRows>(ONNXPRESS_EACH(r) {
    if (r.value < rows) S::store(p.Y + (row + r.value) * w.N + column, y[r.value], left);
  });
}

// Registers 0 and 1 hold sums, 2 rows of A, 3 a part of the panel.
template <int Chunk>
constexpr TileConfig make_config() {
  TileConfig config;
  config.row_bytes[2] = Chunk;
  config.rows[3] = Chunk / 4;
  return config;
}
template <int Chunk>
constexpr TileConfig kConfig = make_config<Chunk>();

template <int Bits, int Chunk>
void multiply_tiles(const NBitsProblem& p, const QuantizedRows& a, std::int64_t first_tile, std::int64_t tiles,
                    std::int64_t begin, std::int64_t end) {
  const NBitsWeight& w = *p.weight;
  const std::int64_t most = kPanelK / w.block_size * w.block_size;  // whole blocks
  alignas(64) std::uint8_t panel[kPanelK * kTile];
  _tile_loadconfig(&kConfig<Chunk>);
  for (std::int64_t tile = first_tile; tile < first_tile + tiles; ++tile) {
    for (std::int64_t k = 0; k < w.padded_k; k += most) {
      const std::int64_t count = w.padded_k - k < most ? w.padded_k - k : most;
      unpack<Bits>(w, tile, k, count, panel);
      // What is unpacked next comes from memory while rows are multiplied, where there are enough to hide it.
      const std::int64_t bytes = count * kTile * Bits / 8, steps = (end - begin + kTileRows - 1) / kTileRows;
      const std::int64_t share = steps > 2 ? bytes / steps : 0;
      const std::uint8_t* next = span_of(w, tile, k / kSpan) + bytes;
      for (std::int64_t row = begin; row < end; row += kTileRows, next += share) {
        prefetch_to_l2(next, share);
        const int rows = static_cast<int>(end - row < kTileRows ? end - row : kTileRows);
        multiply_panel<Chunk>(p, a, panel, tile, row, rows, k, count);
      }
    }
  }
  _tile_release();
}

// Rows [begin, end) times `tiles` tiles, for blocks in whole spans.
template <int Bits>
void multiply(const NBitsProblem& p, const QuantizedRows& a, std::int64_t first_tile, std::int64_t tiles,
              std::int64_t begin, std::int64_t end) {
  if (p.weight->block_size % 64 == 0) {
    multiply_tiles<Bits, 64>(p, a, first_tile, tiles, begin, end);
  } else {
    multiply_tiles<Bits, 32>(p, a, first_tile, tiles, begin, end);
  }
}

// Four sums in turns, which hides the latency of the unit.
std::int64_t spin(const std::uint8_t* lines, std::int64_t rounds, float* sink) {
  alignas(64) std::int32_t sums[kTileRows][kTile];
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, lines, 0);
  _tile_loadd(5, lines + kLine, 0);
  for (std::int64_t round = 0; round < rounds; ++round) {
    _tile_dpbssd(0, 4, 5);
    _tile_dpbssd(1, 4, 5);
    _tile_dpbssd(2, 4, 5);
    _tile_dpbssd(3, 4, 5);
  }
  _tile_stored(3, sums, kLine);
  _tile_release();
  S::store(sink, _mm512_cvtepi32_ps(_mm512_load_si512(sums[0])));
  return rounds * 4 * kTileRows * kTile * kLine;
}

}  // namespace

extern constexpr NBitsInt8Kernels nbits_int8_amx{
    "amx",
    {kMinRowsOfNBits, kSpan},
    kTileRows,
    quantize_row<S>,
    {nullptr, nullptr, multiply<2>, multiply<3>, multiply<4>, multiply<5>, multiply<6>, multiply<7>, multiply<8>},
    spin};

}  // namespace onnxpress
