// The product in AMX tiles.
#include "kernels/int8_amx.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {
namespace {

// Whole lines of outputs go past the caches, to save reading them first.
struct Int8AmxPastCaches : Int8Amx {
  static void store(float* p, F32 v, std::int64_t) { _mm512_stream_ps(p, v); }
};

// For outputs that would not stay in L2, and that lie in whole lines.
bool go_past_caches(const Int8Problem& p) {
  constexpr std::int64_t kMaxInCache = 1 << 20;
  const std::int64_t N = p.weight->N;
  return p.floats_out != nullptr && p.M * N > kMaxInCache && N % kTile == 0 &&
         reinterpret_cast<std::uintptr_t>(p.floats_out) % 64 == 0;
}

constexpr TileConfig kConfig;

constexpr TileSteps kSteps{kTileK, kTileK * kTileRows};

// Below, half of a tile of rows and more would be idle, and the weight comes in no faster.
constexpr std::int64_t kMinRows = 8;

// A strip of two tiles and this many k stays in L1 (32 of 48 KiB) while the rows of a chunk pass by, and a chunk of
// rows in L2. Between strips the sums wait in memory.
constexpr std::int64_t kStripK = 1024;
constexpr std::int64_t kChunkRows = 128;

// Multiply-adds of a task of work: loading and releasing the configuration costs some 0.4 us.
constexpr std::int64_t kWorkPerTask = 1 << 23;

const std::int8_t* tile_of(const Int8Weight& w, std::int64_t tile) {
  return w.codes + (tile < w.tiles ? tile : w.tiles - 1) * w.padded_k * kTile;
}

// 32 rows times 2 tiles times a segment of K.
void multiply_two_by_two(const Int8Problem& p, const Int8Rows& rows, std::int64_t row, std::int64_t tile,
                         std::int64_t begin, std::int64_t end, Sums& sums) {
  const Int8Weight& w = *p.weight;
  if (begin == 0) {
    clear_sums();
  } else {
    load_sums(sums);
  }
  const std::uint8_t *a0 = row_of(rows, row), *a1 = row_of(rows, row + kTileRows);
  add_two_by_two(a0 + begin * kTileRows, a1 + begin * kTileRows, kSteps, tile_of(w, tile) + begin * kTile,
                 tile_of(w, tile + 1) + begin * kTile, end - begin);
  store_sums(sums);
}

// 16 rows times 4 tiles.
void multiply_one_by_four(const Int8Problem& p, const Int8Rows& rows, std::int64_t row, std::int64_t tile, Sums& sums) {
  const Int8Weight& w = *p.weight;
  clear_sums();
  add_one_by_four(row_of(rows, row), kSteps,
                  {tile_of(w, tile), tile_of(w, tile + 1), tile_of(w, tile + 2), tile_of(w, tile + 3)}, w.padded_k);
  store_sums(sums);
}

template <class S>
void finish_rows(const Int8Problem& p, const Int8Rows& rows, std::int64_t row, std::int64_t end, std::int64_t tile,
                 const std::int32_t* sums) {
  const Finish<S> finish(p, rows, tile);
  for (std::int64_t i = 0; i < kTileRows && row + i < end; ++i) finish(row + i, S::load(sums + i * kTile));
}

void finish_tile(const Int8Problem& p, const Int8Rows& rows, std::int64_t row, std::int64_t end, std::int64_t tile,
                 const std::int32_t* sums) {
  if (go_past_caches(p)) {
    finish_rows<Int8AmxPastCaches>(p, rows, row, end, tile, sums);
  } else {
    finish_rows<Int8Amx>(p, rows, row, end, tile, sums);
  }
}

// Up to kChunkRows rows times two tiles, of which the second may not be there.
void multiply_strips(const Int8Problem& p, const Int8Rows& rows, std::int64_t begin, std::int64_t end,
                     std::int64_t tile, std::int64_t tiles_end, Sums* sums) {
  const std::int64_t K = p.weight->padded_k;
  for (std::int64_t k = 0; k < K; k += kStripK) {
    const bool last = K - k <= kStripK;
    for (std::int64_t row = begin; row < end; row += 2 * kTileRows) {
      Sums& block = sums[K <= kStripK ? 0 : (row - begin) / (2 * kTileRows)];
      multiply_two_by_two(p, rows, row, tile, k, last ? K : k + kStripK, block);
      for (int i = 0; i < 4 && last; ++i) {
        if (tile + i % 2 == tiles_end) continue;
        finish_tile(p, rows, row + i / 2 * kTileRows, end, tile + i % 2, block.tiles[i]);
      }
    }
  }
}

void multiply_amx(const Int8Problem& p, const Int8Rows& rows, std::int64_t first_tile, std::int64_t tiles,
                  std::int64_t begin, std::int64_t end) {
  Sums sums[kChunkRows / (2 * kTileRows)];
  const std::int64_t tiles_end = first_tile + tiles;
  // Rows of a last half of a block go by themselves.
  const std::int64_t half = (end - begin) % (2 * kTileRows);
  const std::int64_t blocks_end = half <= kTileRows ? end - half : end;
  _tile_loadconfig(&kConfig);
  for (std::int64_t row = begin; row < blocks_end; row += kChunkRows) {
    const std::int64_t chunk_end = row + kChunkRows < blocks_end ? row + kChunkRows : blocks_end;
    for (std::int64_t tile = first_tile; tile < tiles_end; tile += 2) {
      multiply_strips(p, rows, row, chunk_end, tile, tiles_end, sums);
    }
  }
  for (std::int64_t tile = first_tile; blocks_end < end && tile < tiles_end; tile += 4) {
    multiply_one_by_four(p, rows, blocks_end, tile, sums[0]);
    for (int i = 0; i < 4 && tile + i < tiles_end; ++i) {
      finish_tile(p, rows, blocks_end, end, tile + i, sums[0].tiles[i]);
    }
  }
  _tile_release();
  _mm_sfence();  // what went past the caches is to be seen before the task is done
}

}  // namespace

extern constexpr Int8Kernels int8_amx{Int8Amx::kName, Int8Amx::kInt8Dots, kMinRows,     kWorkPerTask,  2 * kTileRows,
                                      true,           load_row<Int8Amx>,  multiply_amx, range<Int8Amx>};

}  // namespace onnxpress
