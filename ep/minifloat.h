// onnxpress::MatMulMiniFloat.
#pragma once

#include <cstdint>
#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_minifloat(const Claims& claims, const ort::Node* node);

// The level that the user asks for, where it is one of products with floating-point codes: none is in int8.
std::int64_t minifloat_level(const Options& options, std::int64_t otherwise);

}  // namespace onnxpress
