// The option `verify`: each product once more, slowly and in double precision, from the weight as the model stores
// it.
#pragma once

#include <vector>

#include "largest_error.h"
#include "ops/nbits_product.h"
#include "ort/ort.h"

namespace onnxpress {

class NBitsVerifier {
 public:
  NBitsVerifier(const ort::Api& api, const ort::Logger* logger, const NBitsProduct& product, const NBitsSource& source);
  // Without what the model stored, from the packed weight.
  NBitsVerifier(const ort::Api& api, const ort::Logger* logger, const NBitsProduct& product, const NBitsWeight& packed);

  // Logs the error where it is the largest so far. `a` [M, K] and `y` [M, N], or [M, N / 2] with a gated linear unit,
  // are of the type of the product's activations.
  void check(const void* a, std::int64_t M, const RmsNorm& norm, const NBitsEpilogue& epilogue, const void* y);

 private:
  NBitsVerifier(const ort::Api& api, const ort::Logger* logger, const NBitsProduct& product, std::int64_t K,
                std::int64_t N, std::vector<float> weight);

  const ort::Api& api_;
  const bool halves_;
  const std::int64_t K_, N_;
  std::vector<float> weight_;  // [N, K]
  LargestError largest_;
};

}  // namespace onnxpress
