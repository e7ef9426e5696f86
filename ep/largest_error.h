// What the option `verify` logs.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "ort/ort.h"

namespace onnxpress {

// How far one run was from the truth.
struct RunError {
  double error = 0, output = 0;  // the largest of each
  bool differs_in_nan = false;

  void add(double got, double want);
};

class LargestError {
 public:
  LargestError(const ort::Api& api, const ort::Logger* logger, std::string label);
  LargestError(const LargestError&) = delete;
  LargestError& operator=(const LargestError&) = delete;

  // Logs the error of a run where it is the largest so far.
  void report(const RunError& run);

 private:
  const ort::Api& api_;
  const ort::Logger* logger_;
  const std::string label_;
  std::mutex mutex_;
  std::int64_t runs_ = 0;
  double largest_ = -1;
};

}  // namespace onnxpress
