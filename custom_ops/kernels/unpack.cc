// A packed weight, one value at a time.
#include "kernels/bit_planes.h"
#include "kernels/half.h"
#include "kernels/matmul_nbits.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kLine = 64;

int code_at(const NBitsWeight& w, std::int64_t k, std::int64_t n) {
  const std::int64_t group = k % kSpan / 4, byte = n % kTile * 4 + k % 4;
  const std::uint8_t* plane = w.codes + (n / kTile * w.padded_k + k / kSpan * kSpan) * kTile / 8 * w.bits;
  int code = 0;
  for_each_plane(w.bits, [&](int width, int shift) {
    const int line = plane[group % width * kLine + byte];
    code |= (line >> (group / width * width) & ((1 << width) - 1)) << shift;
    plane += width * kLine;
  });
  return code;
}

}  // namespace

float value_at(const NBitsWeight& w, std::int64_t k, std::int64_t n) {
  const std::int64_t at = (n / kTile * w.blocks + k / w.block_size) * kTile + n % kTile;
  const float scale = w.scales != nullptr        ? w.scales[at]
                      : w.half_scales != nullptr ? half_to_float(w.half_scales[at])
                      : w.exponents != nullptr   ? exponent_to_float(w.exponents[at])
                                                 : bfloat16_to_float(w.bfloat16_scales[at]);
  if (w.kind != CodeKind::kInteger) return minifloat_value(w.kind, code_at(w, k, n)) * scale;
  const float zero = w.float_zero_points != nullptr ? w.float_zero_points[at]
                     : w.zero_points != nullptr     ? static_cast<float>(w.zero_points[at])
                                                    : static_cast<float>(1 << (w.bits - 1));
  return (static_cast<float>(code_at(w, k, n)) - zero) * scale;
}

}  // namespace onnxpress
