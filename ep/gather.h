// com.microsoft::GatherBlockQuantized: rows of an embedding table of 4 or 8 bits.
#pragma once

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_gather(const Claims& claims, const ort::Node* node);

}  // namespace onnxpress
