// Columns that lie side by side in every packed weight: the lanes of one 512-bit vector.
#pragma once

#include <cstdint>

namespace onnxpress {

inline constexpr std::int64_t kTile = 16;

}  // namespace onnxpress
