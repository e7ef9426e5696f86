// The option `verify`: each product of 8-bit numbers once more, slowly and in double precision, from the weight as the
// model stores it.
#pragma once

#include <string>
#include <vector>

#include "kernels/matmul_int8.h"
#include "largest_error.h"
#include "ort/ort.h"

namespace onnxpress {

class Int8Verifier {
 public:
  Int8Verifier(const ort::Api& api, const ort::Logger* logger, std::string label, const Int8Source& source);
  // Without what the model stored, from the packed weight.
  Int8Verifier(const ort::Api& api, const ort::Logger* logger, std::string label, const Int8Weight& packed);

  // Logs the error of a problem that was computed where it is the largest so far.
  void check(const Int8Problem& problem);

 private:
  const std::int64_t K_, N_;
  std::vector<std::int16_t> weight_;  // [N, K], without its zero points
  std::vector<float> scales_;         // [N]
  LargestError largest_;
};

}  // namespace onnxpress
