// The shapes of AMX's tile registers. Included only by files compiled for AMX.
#pragma once

#include <cstdint>

namespace onnxpress {
namespace {

constexpr int kTileRows = 16;

// MatMulNBits multiplies 16 rows in the time of one, and whole spans: with fewer rows AVX-512 VNNI wins.
constexpr int kMinRowsOfNBits = 12;

// As the instruction reads it. All tiles are of 16 rows: those beyond the last are computed and dropped. To be made
// static, as the compiler does not know that the instruction reads all of it.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace
}  // namespace onnxpress
