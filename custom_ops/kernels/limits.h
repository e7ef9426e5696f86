// Measures of what one core could do at best.
#pragma once

#include <cstdint>

#include "kernels/cpu_isa.h"

namespace onnxpress {

// int8 multiply-adds a second, for about `seconds`.
double measure_dot_rate(Isa isa, double seconds);

// Bytes a second read from a memory of `bytes` that is larger than the caches. Throws std::bad_alloc.
double measure_read_rate(Isa isa, std::int64_t bytes, double seconds);

}  // namespace onnxpress
