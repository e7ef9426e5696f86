#include "kernels/limits.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels/aligned.h"
#include "kernels/matmul_nbits_kernels.h"

namespace onnxpress {
namespace {

// The best rate that work(), which returns an amount, reaches in `seconds`: what disturbs it only lowers it.
template <class Work>
double best_rate(double seconds, const Work& work) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  double best = 0;
  for (const auto begin = Clock::now(); since(begin) < seconds;) {
    const auto start = Clock::now();
    const double amount = work();
    best = std::max(best, amount / since(start));
  }
  return best;
}

}  // namespace

double measure_dot_rate(Isa isa, double seconds) {
  alignas(64) float sink[kTile];
  alignas(64) const std::uint8_t lines[64 * 16] = {1};
  const NBitsKernels& kernels = nbits_kernels(isa);
  return best_rate(seconds, [&] { return static_cast<double>(kernels.spin_dots(lines, 20000, sink)); });
}

double measure_read_rate(Isa isa, std::int64_t bytes, double seconds) {
  constexpr std::int64_t kStep = 512;
  const std::int64_t count = std::max<std::int64_t>(bytes / kStep, 1) * kStep;
  alignas(64) std::uint8_t sink[kStep];
  const auto memory = make_aligned<std::uint8_t>(static_cast<std::size_t>(count));
  std::memset(memory.get(), 1, static_cast<std::size_t>(count));
  const NBitsKernels& kernels = nbits_kernels(isa);
  return best_rate(seconds, [&] {
    kernels.read(memory.get(), count, sink);
    return static_cast<double>(count);
  });
}

}  // namespace onnxpress
