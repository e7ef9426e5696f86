// The products of encoder_layer in AMX tiles.
#include "kernels/encoder_layer_impl.h"
#include "kernels/int8_amx.h"

namespace onnxpress {
namespace {

constexpr TileConfig kConfig;

// With fewer rows most of a tile would be idle.
constexpr std::int64_t kLeastTileRows = 4;

// Rows from `row` on, up to 16, of a tile of columns from their sums.
void finish_tile(const Columns& columns, const EncoderScratch& scratch, std::int64_t row, std::int64_t end,
                 std::int64_t tile, const std::int32_t* sums, float* out, std::int64_t stride) {
  using S = Int8Amx;
  const ColumnFactors<S> factors(columns, tile);
  for (; row < end; ++row, sums += kTile) factors.finish(S::load(sums), scratch, row, out + row * stride);
}

// Tiles of rows reach beyond the last, and those of k beyond padded_k, where codes of rows are 0.
template <>
void multiply_rows<Int8Amx>(const Columns& columns, const EncoderScratch& scratch, std::int64_t first,
                            std::int64_t count, float* out, std::int64_t stride) {
  if (count < kLeastTileRows) {
    multiply_rows<Int8Avx512Vnni>(columns, scratch, first, count, out, stride);
    return;
  }
  const std::int64_t tiles = (columns.count + kTile - 1) / kTile, end = first + count;
  const auto codes_of = [&](std::int64_t tile) {
    return columns.codes + (tile < tiles ? tile : tiles - 1) * columns.padded_k * kTile;
  };
  const auto row_of = [&](std::int64_t row) { return scratch.codes + row * scratch.code_bytes; };
  const TileSteps steps{scratch.code_bytes, kTileK};
  const auto finish = [&](std::int64_t row, std::int64_t tile, const std::int32_t* sums) {
    const std::int64_t last = row + kTileRows < end ? row + kTileRows : end;
    if (tile < tiles) finish_tile(columns, scratch, row, last, tile, sums, out, stride);
  };
  // Rows of a last half of a block go by themselves.
  const std::int64_t half = count % (2 * kTileRows);
  const std::int64_t blocks_end = half <= kTileRows ? end - half : end;
  Sums sums;
  _tile_loadconfig(&kConfig);
  for (std::int64_t tile = 0; tile < tiles; tile += 2) {
    for (std::int64_t row = first; row < blocks_end; row += 2 * kTileRows) {
      clear_sums();
      add_two_by_two(row_of(row), row_of(row + kTileRows), steps, codes_of(tile), codes_of(tile + 1), columns.padded_k);
      store_sums(sums);
      for (int i = 0; i < 4; ++i) finish(row + i / 2 * kTileRows, tile + i % 2, sums.tiles[i]);
    }
  }
  for (std::int64_t tile = 0; blocks_end < end && tile < tiles; tile += 4) {
    clear_sums();
    add_one_by_four(row_of(blocks_end), steps,
                    {codes_of(tile), codes_of(tile + 1), codes_of(tile + 2), codes_of(tile + 3)}, columns.padded_k);
    store_sums(sums);
    for (int i = 0; i < 4; ++i) finish(blocks_end, tile + i, sums.tiles[i]);
  }
  _tile_release();
}

}  // namespace

extern constexpr EncoderKernels encoder_amx = make_encoder_kernels<Int8Amx>({8, 64, 2 * kTileRows});

}  // namespace onnxpress
