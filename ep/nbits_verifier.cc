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

void normalize(const RmsNorm& norm, std::vector<double>& x) {
  double squares = 0;
  for (double each : x) squares += each * each;
  const double factor = 1 / std::sqrt(squares / static_cast<double>(x.size()) + norm.epsilon);
  for (std::size_t k = 0; k < x.size(); ++k) x[k] *= factor * norm.scale[k];
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

void NBitsVerifier::check(const void* a, std::int64_t M, const RmsNorm& norm, const NBitsEpilogue& epilogue,
                          const void* y) {
  const void* gate = epilogue.gate != nullptr ? ort::data(api_, epilogue.gate) : nullptr;
  const void* addend = epilogue.addend != nullptr ? ort::data(api_, epilogue.addend) : nullptr;
  const bool halves = epilogue.glu != Glu::kNone;
  const std::int64_t outputs = halves ? N_ / 2 : N_;
  const auto at = [&](const void* values, std::int64_t index) {
    return halves_ ? half_to_float(static_cast<const std::uint16_t*>(values)[index])
                   : static_cast<const float*>(values)[index];
  };
  RunError run;
  std::vector<double> x(static_cast<std::size_t>(K_));
  const auto sum = [&](std::int64_t n) {
    double total = epilogue.bias != nullptr ? at(epilogue.bias, n) : 0;
    const float* row = weight_.data() + n * K_;
    for (std::int64_t k = 0; k < K_; ++k) total += x[static_cast<std::size_t>(k)] * row[k];
    return total;
  };
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t k = 0; k < K_; ++k) x[static_cast<std::size_t>(k)] = at(a, m * K_ + k);
    if (norm.scale != nullptr) normalize(norm, x);
    for (std::int64_t n = 0; n < outputs; ++n) {
      const std::int64_t activated = epilogue.glu == Glu::kSecond ? n + outputs : n;
      double want = activate(epilogue.activation, sum(activated));
      if (halves) want *= sum(epilogue.glu == Glu::kSecond ? n : n + outputs);
      if (gate != nullptr) want *= at(gate, m * N_ + n);
      if (addend != nullptr) want += at(addend, m * N_ + n);
      run.add(at(y, m * outputs + n), want);
    }
  }
  largest_.report(run);
}

}  // namespace onnxpress
