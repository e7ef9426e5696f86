#include "kernels/matmul_int8_split_k.h"

#include <algorithm>
#include <cmath>

#include "kernels/workspace.h"

namespace onnxpress {
namespace {

// Columns [k, k + count) of `rows` rows of K numbers.
template <class T>
const T* copy_columns(const T* from, std::int64_t rows, std::int64_t K, std::int64_t k, std::int64_t count,
                      std::uint8_t* workspace) {
  auto* to = reinterpret_cast<T*>(workspace);
  for (std::int64_t row = 0; row < rows; ++row) std::copy_n(from + row * K + k, count, to + row * count);
  return to;
}

// As QuantizeLinear rounds it; a NaN to the lowest code.
std::uint8_t code_of(float value, const Int8Format& format) {
  const float low = static_cast<float>((format.is_signed ? -128 : 0) - format.zero_point);
  const float scaled = value / format.scale;
  const float within = std::isnan(scaled) ? low : std::clamp(scaled, low, low + 255.0f);
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(std::nearbyint(within)) + format.zero_point);
}

// The sums of the segments' products, then the bias.
const char* multiply_rows(const Int8Problem& p, Isa isa, const Parallel& parallel, std::uint8_t* workspace) {
  const std::int64_t K = p.weight->K, N = p.weight->N, outputs = p.M * N;
  float* product = reinterpret_cast<float*>(workspace);
  float* y = p.floats_out != nullptr ? p.floats_out : product + outputs;
  std::uint8_t* columns = workspace + 2 * outputs * std::int64_t{sizeof(float)};
  const char* ran = nullptr;
  for (std::int64_t k = 0; k < K; k += kSplitK) {
    const Int8Weight segment = segment_of(*p.weight, k);
    Int8Problem part = p;
    part.weight = &segment;
    part.bias = nullptr;
    if (p.floats != nullptr) part.floats = copy_columns(p.floats, p.M, K, k, segment.K, columns);
    if (p.codes != nullptr) part.codes = copy_columns(p.codes, p.M, K, k, segment.K, columns);
    part.codes_out = nullptr;
    part.floats_out = k == 0 ? y : product;
    ran = matmul_int8(part, isa, parallel);
    for (std::int64_t i = 0; k > 0 && i < outputs; ++i) y[i] += product[i];
  }
  for (std::int64_t i = 0; p.bias != nullptr && i < outputs; ++i) y[i] += p.bias[i % N];
  for (std::int64_t i = 0; p.codes_out != nullptr && i < outputs; ++i) p.codes_out[i] = code_of(y[i], p.output);
  return ran;
}

}  // namespace

const char* multiply_split_k(const Int8Problem& p, Isa isa, const Parallel& parallel) {
  const std::int64_t bytes = (2 * p.weight->N + kSplitK) * std::int64_t{sizeof(float)};
  const std::int64_t chunk_rows = rows_per_chunk(p.M, bytes, 1);
  const auto workspace = make_workspace(static_cast<std::size_t>(chunk_rows * bytes));
  const char* ran = nullptr;
  for (std::int64_t begin = 0; begin < p.M; begin += chunk_rows) {
    ran = multiply_rows(rows_of(p, begin, std::min(chunk_rows, p.M - begin)), isa, parallel, workspace.get());
  }
  return ran;
}

}  // namespace onnxpress
