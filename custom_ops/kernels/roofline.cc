#include "kernels/roofline.h"

#include <algorithm>
#include <chrono>

#include "kernels/aligned.h"
#include "kernels/kernel_table.h"
#include "kernels/matmul_nbits_kernels.h"

namespace onnxpress {

double measure_dot_rate(Isa isa, double seconds) {
  using Clock = std::chrono::steady_clock;
  alignas(64) float sink[kTile];
  alignas(64) const std::uint8_t lines[64 * 16] = {1};
  const NBitsInt8Kernels& kernels = best_kernels<NBitsInt8Kernels>(isa);
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  double best = 0;  // what disturbs it only lowers it
  for (const auto begin = Clock::now(); since(begin) < seconds;) {
    const auto start = Clock::now();
    const auto dots = static_cast<double>(kernels.spin_dots(lines, 20000, sink));
    best = std::max(best, dots / since(start));
  }
  return best;
}

void read_memory(Isa isa, const std::uint8_t* bytes, std::int64_t count) {
  constexpr std::int64_t kStep = 512;
  alignas(64) std::uint8_t sink[kStep];
  const auto address = reinterpret_cast<std::uintptr_t>(bytes);
  const auto skipped = static_cast<std::int64_t>((kCacheLine - address % kCacheLine) % kCacheLine);
  const std::int64_t whole = std::max<std::int64_t>(count - skipped, 0) / kStep * kStep;
  if (whole != 0) best_kernels<NBitsFloatKernels>(isa).read(bytes + skipped, whole, sink);
}

}  // namespace onnxpress
