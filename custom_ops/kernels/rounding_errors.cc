#include "kernels/rounding_errors.h"

#include <cmath>

#include "kernels/kernel_table.h"
#include "kernels/quantize_blocks_kernels.h"

namespace onnxpress {
namespace {

RoundingRule rule_of(CodeKind kind) {
  RoundingRule rule{};
  const MiniFloat& format = minifloat(kind);
  rule.is_table = kind == CodeKind::kNF4;
  if (!rule.is_table) {
    rule.high = minifloat_value(kind, format.largest);
    rule.low = -rule.high;
    rule.least_power = std::ldexp(1.0f, 1 - format.bias);
    rule.rounder = std::ldexp(1.5f, 23 - format.mantissa);
    return rule;
  }
  for (int i = 0; i < kRoundingValues; ++i) rule.values[i] = minifloat_value(kind, i);
  for (int i = 0; i + 1 < kRoundingValues; ++i) {
    // To code i belongs what is not above the bound: a tie goes down to an even i, and else up. A middle that is no
    // float32 gets the one below it.
    const double middle = (static_cast<double>(rule.values[i]) + static_cast<double>(rule.values[i + 1])) / 2;
    const float bound = static_cast<float>(middle);
    const bool up = static_cast<double>(bound) > middle || (static_cast<double>(bound) == middle && i % 2 == 1);
    rule.bounds[i] = up ? std::nextafter(bound, -INFINITY) : bound;
  }
  return rule;
}

}  // namespace

const char* rounding_errors(const ScaledBlocks& blocks, CodeKind kind, float* sums, Isa isa) {
  const QuantizeKernels& kernels = best_kernels<QuantizeKernels>(isa);
  const RoundingRule rule = rule_of(kind);
  for (std::int64_t b = 0; b < blocks.count; ++b) {
    double found[kRoundingSums] = {};
    kernels.errors(blocks.x + b * blocks.size, blocks.size, blocks.scales[b], blocks.growth[b], rule, found);
    for (int i = 0; i < kRoundingSums; ++i) sums[b * kRoundingSums + i] = static_cast<float>(found[i]);
  }
  return kernels.isa;
}

}  // namespace onnxpress
