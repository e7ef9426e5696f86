// The kernels of block_sparse_matmul, written once over a vector type (sparse_<isa>.h) and compiled once an instruction
// set.
#pragma once

#include "kernels/block_sparse_few.h"
#include "kernels/block_sparse_many.h"
#include "kernels/block_sparse_rows.h"

namespace onnxpress {
namespace {

template <class S>
constexpr BlockSparseKernels make_block_sparse_kernels() {
  return {S::kName,
          S::kFlip,
          S::kMaxTilesAtOnce,
          S::kHas8RowTiles,
          S::kMaxFewRowsInt8,
          S::kMaxFewRowsFloat,
          sparse_load_tile<S>,
          sparse_load_row<S>,
          sparse_multiply<S>,
          sparse_multiply_few<S>};
}

}  // namespace
}  // namespace onnxpress
