// The execution provider: which nodes it takes, and what becomes of them.
#pragma once

#include "options.h"
#include "ort/ep_abi.h"

namespace onnxpress {

// For one session. `repeats_names`: the runtime counts compiled nodes anew in each graph of a model, from which it
// makes their names, and refuses the second of a name.
ort::Ep* create_ep(const ort::Api& api, Options options, const ort::Logger* logger, bool repeats_names);
void release_ep(ort::Ep* ep);

}  // namespace onnxpress
