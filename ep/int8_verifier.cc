#include "int8_verifier.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace onnxpress {
namespace {

std::int32_t number(std::uint8_t code, bool is_signed) { return is_signed ? static_cast<std::int8_t>(code) : code; }

// The code of a value, as QuantizeLinear rounds it.
std::int32_t round_to(const Int8Format& format, double value) {
  const int low = format.is_signed ? -128 : 0;
  // NaN is no number of 8 bits: any will do.
  if (std::isnan(value)) return low;
  const double code = std::nearbyint(value) + format.zero_point;
  return static_cast<std::int32_t>(std::min<double>(std::max<double>(code, low), low + 255));
}

std::vector<std::int16_t> numbers(const Int8Source& w) {
  std::vector<std::int16_t> result;
  result.reserve(static_cast<std::size_t>(w.N * w.K));
  for (std::int64_t n = 0; n < w.N; ++n) {
    std::int32_t zero = 0;
    if (w.zero_points != nullptr) zero = number(w.zero_points[w.zero_point_per_column ? n : 0], w.is_signed);
    for (std::int64_t k = 0; k < w.K; ++k) {
      const std::uint8_t code = w.codes[w.transposed ? n * w.K + k : k * w.N + n];
      result.push_back(static_cast<std::int16_t>(number(code, w.is_signed) - zero));
    }
  }
  return result;
}

void add_column(const Int8Weight& w, std::int64_t n, std::vector<std::int16_t>& numbers) {
  const std::int8_t* column = w.codes + n / kTile * w.padded_k * kTile + n % kTile * 4;
  const std::int32_t zero = w.zero_points != nullptr ? w.zero_points[n] : 0;
  for (std::int64_t k = 0; k < w.K; ++k) {
    numbers.push_back(static_cast<std::int16_t>(column[k / 4 * 4 * kTile + k % 4] - zero));
  }
}

std::vector<std::int16_t> numbers(const Int8Weight& w) {
  std::vector<std::int16_t> result;
  result.reserve(static_cast<std::size_t>(w.N * w.K));
  for (std::int64_t n = 0; n < w.N; ++n) {
    if (!w.is_long) add_column(w, n, result);
    for (std::int64_t k = 0; w.is_long && k < w.K; k += kSplitK) add_column(segment_of(w, k), n, result);
  }
  return result;
}

std::vector<float> scales(const Int8Source& w) {
  std::vector<float> result(static_cast<std::size_t>(w.N), w.scales != nullptr ? w.scales[0] : 1.0f);
  if (w.scale_per_column) result.assign(w.scales, w.scales + w.N);
  return result;
}

std::vector<float> scales(const Int8Weight& w) {
  const float* values = w.is_long ? segment_of(w, 0).scales : w.scales;
  return std::vector<float>(values, values + w.N);
}

}  // namespace

Int8Verifier::Int8Verifier(const ort::Api& api, const ort::Logger* logger, std::string label, const Int8Source& source)
    : K_(source.K),
      N_(source.N),
      weight_(numbers(source)),
      scales_(scales(source)),
      largest_(api, logger, std::move(label)) {}

Int8Verifier::Int8Verifier(const ort::Api& api, const ort::Logger* logger, std::string label, const Int8Weight& packed)
    : K_(packed.K),
      N_(packed.N),
      weight_(numbers(packed)),
      scales_(scales(packed)),
      largest_(api, logger, std::move(label)) {}

void Int8Verifier::check(const Int8Problem& p) {
  const auto a = [&](std::int64_t at) {
    const std::int32_t code =
        p.floats != nullptr ? round_to(p.input, p.floats[at] / p.input.scale) : number(p.codes[at], p.input.is_signed);
    return code - p.input.zero_point;
  };
  RunError run;
  for (std::int64_t m = 0; m < p.M; ++m) {
    for (std::int64_t n = 0; n < N_; ++n) {
      const std::int16_t* row = weight_.data() + n * K_;
      std::int64_t sum = 0;
      for (std::int64_t k = 0; k < K_; ++k) sum += std::int64_t{a(m * K_ + k)} * row[k];
      double want = static_cast<double>(sum) * p.input.scale * scales_[static_cast<std::size_t>(n)];
      if (p.bias != nullptr) want += p.bias[n];
      const std::int64_t at = m * N_ + n;
      if (p.floats_out != nullptr) {
        run.add(p.floats_out[at], want);
      } else {
        const double scale = p.output.scale;
        const std::int32_t code = round_to(p.output, want / scale), got = number(p.codes_out[at], p.output.is_signed);
        run.add((got - p.output.zero_point) * scale, (code - p.output.zero_point) * scale);
      }
    }
  }
  largest_.report(run);
}

}  // namespace onnxpress
