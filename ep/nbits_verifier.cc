#include "nbits_verifier.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <utility>

#include "kernels/half.h"
#include "options.h"

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
      logger_(logger),
      label_(product.label()),
      halves_(product.activation() == ort::kFloat16),
      K_(K),
      N_(N),
      weight_(std::move(weight)) {}

void NBitsVerifier::check(const void* a, std::int64_t M, const void* bias, const void* y) {
  const auto at = [&](const void* values, std::int64_t index) {
    return halves_ ? half_to_float(static_cast<const std::uint16_t*>(values)[index])
                   : static_cast<const float*>(values)[index];
  };
  double error = 0, output = 0;
  bool differs_in_nan = false;
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t n = 0; n < N_; ++n) {
      double sum = bias != nullptr ? at(bias, n) : 0;
      const float* row = weight_.data() + n * K_;
      for (std::int64_t k = 0; k < K_; ++k) sum += static_cast<double>(at(a, m * K_ + k)) * row[k];
      const double got = at(y, m * N_ + n);
      if (!std::isfinite(sum) || !std::isfinite(got)) {
        differs_in_nan = differs_in_nan || std::isfinite(sum) != std::isfinite(got);
        continue;
      }
      error = std::max(error, std::abs(got - sum));
      output = std::max(output, std::abs(sum));
    }
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  ++runs_;
  if (error <= largest_error_ && !differs_in_nan) return;
  largest_error_ = std::max(largest_error_, error);
  // During a run, because the session's logger may be gone when the session ends.
  std::ostringstream text;
  text << kEpName << ": verify: " << label_ << ": largest error " << error << ", largest output " << output
       << (differs_in_nan ? ", NaN or infinity in one result only" : "") << ", in run " << runs_;
  ort::check(api_, api_.Logger_LogMessage(logger_, ort::kWarning, text.str().c_str(), __FILE__, __LINE__, __func__));
}

}  // namespace onnxpress
