// Products of bytes in AMX tiles: 16 rows x 16 columns x 64 k an instruction. A tile of B is 16 lines of a packed
// weight as they lie. Included only by files compiled for AMX.
#pragma once

#include <cstdint>

#include "kernels/amx_tiles.h"
#include "kernels/int8_avx512vnni.h"

namespace onnxpress {
namespace {

struct Int8Amx : Int8Avx512Vnni {
  static constexpr const char* kName = "amx";
};

constexpr std::int64_t kTileK = 64;

// Sums of four tiles.
struct Sums {
  alignas(64) std::int32_t tiles[4][kTileRows * kTile];
};

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void load_sums(const Sums& sums) {
  _tile_loadd(0, sums.tiles[0], 64);
  _tile_loadd(1, sums.tiles[1], 64);
  _tile_loadd(2, sums.tiles[2], 64);
  _tile_loadd(3, sums.tiles[3], 64);
}

inline void store_sums(Sums& sums) {
  _tile_stored(0, sums.tiles[0], 64);
  _tile_stored(1, sums.tiles[1], 64);
  _tile_stored(2, sums.tiles[2], 64);
  _tile_stored(3, sums.tiles[3], 64);
}

// How codes of rows lie: bytes from one row of a tile to the next, and from 64 k to the next 64.
struct TileSteps {
  std::int64_t row, k;
};

// Adds 32 rows times 2 tiles of columns: each tile that is loaded serves two products. Sums are of tiles (row, column)
// 0 0, 0 1, 1 0 and 1 1.
inline void add_two_by_two(const std::uint8_t* a0, const std::uint8_t* a1, const TileSteps& steps,
                           const std::int8_t* b0, const std::int8_t* b1, std::int64_t K) {
  for (std::int64_t k = 0; k < K; k += kTileK, a0 += steps.k, a1 += steps.k) {
    _tile_loadd(4, a0, steps.row);
    _tile_loadd(6, b0 + k * kTile, 64);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, b1 + k * kTile, 64);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, a1, steps.row);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
}

// Adds 16 rows times 4 tiles of columns.
inline void add_one_by_four(const std::uint8_t* a, const TileSteps& steps, const std::int8_t* const (&b)[4],
                            std::int64_t K) {
  for (std::int64_t k = 0; k < K; k += kTileK, a += steps.k) {
    _tile_loadd(4, a, steps.row);
    _tile_loadd(5, b[0] + k * kTile, 64);
    _tile_dpbusd(0, 4, 5);
    _tile_loadd(6, b[1] + k * kTile, 64);
    _tile_dpbusd(1, 4, 6);
    _tile_loadd(7, b[2] + k * kTile, 64);
    _tile_dpbusd(2, 4, 7);
    _tile_loadd(5, b[3] + k * kTile, 64);
    _tile_dpbusd(3, 4, 5);
  }
}

}  // namespace
}  // namespace onnxpress
