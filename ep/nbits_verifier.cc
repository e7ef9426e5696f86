#include "nbits_verifier.h"

#include "kernels/half.h"

namespace onnxpress {
namespace {

std::vector<float> dequantize(const NBitsSource& source) {
  std::vector<float> weight;
  weight.reserve(static_cast<std::size_t>(source.N * source.K));
  for (std::int64_t n = 0; n < source.N; ++n) {
    for (std::int64_t k = 0; k < source.K; ++k) {
      const std::int64_t block = k / source.block_size;
      const float zero =
          source.float_zero_points != nullptr ? source.float_zero_point(block, n) : source.zero_point(block, n);
      weight.push_back((static_cast<float>(source.code(k, n)) - zero) * source.scale(block, n));
    }
  }
  return weight;
}

}  // namespace

NBitsVerifier::NBitsVerifier(const ort::Api& api, const ort::Logger* logger, const NBitsProduct& product,
                             const NBitsSource& source)
    : halves_(product.activation() == ort::kFloat16),
      K_(source.K),
      N_(source.N),
      weight_(dequantize(source)),
      largest_(api, logger, product.label()) {}

void NBitsVerifier::check(const void* a, std::int64_t M, const void* bias, const void* y) {
  const auto at = [&](const void* values, std::int64_t index) {
    return halves_ ? half_to_float(static_cast<const std::uint16_t*>(values)[index])
                   : static_cast<const float*>(values)[index];
  };
  RunError run;
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t n = 0; n < N_; ++n) {
      double sum = bias != nullptr ? at(bias, n) : 0;
      const float* row = weight_.data() + n * K_;
      for (std::int64_t k = 0; k < K_; ++k) sum += static_cast<double>(at(a, m * K_ + k)) * row[k];
      run.add(at(y, m * N_ + n), sum);
    }
  }
  largest_.report(run);
}

}  // namespace onnxpress
