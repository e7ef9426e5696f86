#include "largest_error.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <utility>

#include "options.h"

namespace onnxpress {

void RunError::add(double got, double want) {
  if (!std::isfinite(want) || !std::isfinite(got)) {
    differs_in_nan = differs_in_nan || std::isfinite(want) != std::isfinite(got);
    return;
  }
  error = std::max(error, std::abs(got - want));
  output = std::max(output, std::abs(want));
}

LargestError::LargestError(const ort::Api& api, const ort::Logger* logger, std::string label)
    : api_(api), logger_(logger), label_(std::move(label)) {}

void LargestError::report(const RunError& run) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++runs_;
  if (run.error <= largest_ && !run.differs_in_nan) return;
  largest_ = std::max(largest_, run.error);
  // During a run, because the session's logger may be gone when the session ends.
  std::ostringstream text;
  text << kEpName << ": verify: " << label_ << ": largest error " << run.error << ", largest output " << run.output
       << (run.differs_in_nan ? ", NaN or infinity in one result only" : "") << ", in run " << runs_;
  ort::check(api_, api_.Logger_LogMessage(logger_, ort::kWarning, text.str().c_str(), __FILE__, __LINE__, __func__));
}

}  // namespace onnxpress
