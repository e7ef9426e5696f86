// How fast the machine could go: the dot products of the int8 kernel with nothing in their way, and plain reading.
#pragma once

#include <cstdint>

#include "kernels/matmul_nbits_tiles.h"

namespace onnxpress {
namespace {

// As many independent sums as the kernel keeps; each line of codes meets as many activations as in the kernel.
// `lines` holds kGroups + kPanelTiles lines. Returns the number of multiply-adds.
template <class S>
std::int64_t spin_dots(const std::uint8_t* lines, std::int64_t rounds, float* sink) {
  constexpr int kTiles = S::kPanelTiles;
  typename S::template Dot<4> dot[S::kRows][kTiles];
  unroll<S::kRows>(ONNXPRESS_EACH(r) { unroll<kTiles>(ONNXPRESS_EACH(t) { dot[r.value][t.value].start(0, 0); }); });
  for (std::int64_t round = 0; round < rounds; ++round) {
    asm volatile("" ::: "memory");  // or what every round repeats would be computed once
    unroll<kGroups>(ONNXPRESS_EACH(g) {
      unroll<S::kRows>(ONNXPRESS_EACH(r) {
        const auto* activations = reinterpret_cast<const std::int8_t*>(lines) + 4 * (g.value + kGroups * r.value);
        unroll<kTiles>(ONNXPRESS_EACH(t) {
          const auto codes = S::load(lines + kLine * (g.value + t.value));  // equal sums would be computed once
          dot[r.value][t.value].template add<decltype(g)::value, kGroups>(codes, activations);
        });
      });
    });
  }
  auto sum = S::zero();  // a sum that nobody reads would not be computed
  unroll<S::kRows>(
      ONNXPRESS_EACH(r) { unroll<kTiles>(ONNXPRESS_EACH(t) { sum = S::add(sum, dot[r.value][t.value].value()); }); });
  S::store(sink, sum);
  return rounds * kGroups * S::kRows * kTiles * kLine;
}

// A count in whole multiples of eight lines.
template <class S>
void read(const std::uint8_t* bytes, std::int64_t count, std::uint8_t* sink) {
  constexpr int kStreams = 8;
  typename S::U8 seen[kStreams];
  unroll<kStreams>(ONNXPRESS_EACH(i) { seen[i.value] = S::load(bytes + i.value * kLine); });
  for (std::int64_t at = 0; at < count; at += kStreams * kLine) {
    unroll<kStreams>(
        ONNXPRESS_EACH(i) { seen[i.value] = S::bit_or(seen[i.value], S::load(bytes + at + i.value * kLine)); });
  }
  unroll<kStreams>(ONNXPRESS_EACH(i) { S::store(sink + i.value * kLine, seen[i.value]); });
}

}  // namespace
}  // namespace onnxpress
