// onnxpress::EncoderLayer as custom ops.
#pragma once

#include <vector>

#include "ort/abi.h"
#include "ort/ort.h"

namespace onnxpress {

std::vector<const ort::CustomOp*> encoder_ops(const ort::Api& api, bool infers_shapes);

}  // namespace onnxpress
