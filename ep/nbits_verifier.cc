#include "nbits_verifier.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/half.h"

namespace onnxpress {
namespace {

std::vector<float> dequantize(const NBitsSource& source) {
  std::vector<float> weight;
  weight.reserve(static_cast<std::size_t>(source.N * source.K));
  for (std::int64_t n = 0; n < source.N; ++n) {
    for (std::int64_t k = 0; k < source.K; ++k) weight.push_back(source.value(k, n));
  }
  return weight;
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return x * std::erfc(-x * std::sqrt(0.5)) / 2;
    case Activation::kGeluTanh:
      return x * (1 + std::tanh(std::sqrt(8 / std::acos(-1.0)) / 2 * (x + 0.044715 * x * x * x))) / 2;
  }
  return x;
}

std::vector<float> dequantize(const NBitsWeight& packed) {
  std::vector<float> weight;
  weight.reserve(static_cast<std::size_t>(packed.N * packed.K));
  for (std::int64_t n = 0; n < packed.N; ++n) {
    for (std::int64_t k = 0; k < packed.K; ++k) weight.push_back(value_at(packed, k, n));
  }
  return weight;
}

}  // namespace

NBitsVerifier::NBitsVerifier(const ort::Api& api, const ort::Logger* logger, const NBitsProduct& product,
                             const NBitsSource& source)
    : NBitsVerifier(api, logger, product, source.K, source.N, dequantize(source)) {}

NBitsVerifier::NBitsVerifier(const ort::Api& api, const ort::Logger* logger, const NBitsProduct& product,
                             const NBitsWeight& packed)
    : NBitsVerifier(api, logger, product, packed.K, packed.N, dequantize(packed)) {}

NBitsVerifier::NBitsVerifier(const ort::Api& api, const ort::Logger* logger, const NBitsProduct& product,
                             std::int64_t K, std::int64_t N, std::vector<float> weight)
    : api_(api),
      halves_(product.activation() == ort::kFloat16),
      K_(K),
      N_(N),
      weight_(std::move(weight)),
      largest_(api, logger, product.label()) {}

void NBitsVerifier::check(const void* a, std::int64_t M, const NBitsEpilogue& epilogue, const void* y) {
  const void* gate = epilogue.gate != nullptr ? ort::data(api_, epilogue.gate) : nullptr;
  const auto at = [&](const void* values, std::int64_t index) {
    return halves_ ? half_to_float(static_cast<const std::uint16_t*>(values)[index])
                   : static_cast<const float*>(values)[index];
  };
  RunError run;
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t n = 0; n < N_; ++n) {
      double sum = epilogue.bias != nullptr ? at(epilogue.bias, n) : 0;
      const float* row = weight_.data() + n * K_;
      for (std::int64_t k = 0; k < K_; ++k) sum += static_cast<double>(at(a, m * K_ + k)) * row[k];
      double want = activate(epilogue.activation, sum);
      if (gate != nullptr) want *= at(gate, m * N_ + n);
      run.add(at(y, m * N_ + n), want);
    }
  }
  largest_.report(run);
}

}  // namespace onnxpress
