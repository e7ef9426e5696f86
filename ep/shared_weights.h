// One packed copy of equal weights for all sessions of a process.
#pragma once

#include <memory>

#include "kernels/matmul_nbits.h"

namespace onnxpress {

// `packed`, or the copy of the same bytes that another session holds. It lives as long as some session holds it.
std::shared_ptr<const PackedWeight> share(PackedWeight packed);

}  // namespace onnxpress
