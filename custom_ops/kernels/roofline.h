// Measures of what one core could do at best.
#pragma once

#include <cstdint>

#include "kernels/cpu_isa.h"

namespace onnxpress {

// int8 multiply-adds a second, for about `seconds`.
double measure_dot_rate(Isa isa, double seconds);

// Reads these bytes, but for less than a kilobyte at the ends, and forgets them.
void read_memory(Isa isa, const std::uint8_t* bytes, std::int64_t count);

}  // namespace onnxpress
