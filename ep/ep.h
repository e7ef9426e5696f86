// The execution provider: which nodes it takes, and what becomes of them.
#pragma once

#include "options.h"
#include "ort/ep_abi.h"

namespace onnxpress {

// For one session.
ort::Ep* create_ep(const ort::Api& api, Options options, const ort::Logger* logger);
void release_ep(ort::Ep* ep);

}  // namespace onnxpress
