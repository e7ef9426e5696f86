// Products with a weight so long that sums of int32 could overflow.
#pragma once

#include "kernels/matmul_int8.h"

namespace onnxpress {

// The problem of some of the rows.
Int8Problem rows_of(const Int8Problem& problem, std::int64_t begin, std::int64_t rows);

// As `matmul_int8`, for a long weight.
const char* multiply_split_k(const Int8Problem& problem, Isa isa, const Parallel& parallel);

}  // namespace onnxpress
