// The execution provider: which nodes it takes, and what becomes of them.
#pragma once

#include "ort/ep_abi.h"

namespace onnxpress {

inline constexpr const char* kEpName = "OnnxpressExecutionProvider";

// For one session. Throws InvalidArgument for an option that is unknown or has a wrong value.
ort::Ep* create_ep(const ort::Api& api, const ort::SessionOptions* options, const ort::Logger* logger);
void release_ep(ort::Ep* ep);

}  // namespace onnxpress
