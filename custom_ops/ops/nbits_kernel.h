// What a custom op with a weight of a few bits runs.
#pragma once

#include "ops/nbits_product.h"
#include "ort/ort.h"

namespace onnxpress {

class NBitsKernel {
 public:
  // Where a node has the inputs that come after A, B and scales.
  struct Inputs {
    std::size_t zero_points, bias;
  };
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  NBitsKernel(const ort::Api& api, const ort::KernelInfo* info, NBitsProduct product, Inputs inputs);

  void compute(ort::KernelContext* context) const;

 private:
  const ort::Api& api_;
  const NBitsProduct product_;
  const Inputs at_;
  PackedWeight weight_;
  bool maybe_more_zero_points_ = false;
};

}  // namespace onnxpress
