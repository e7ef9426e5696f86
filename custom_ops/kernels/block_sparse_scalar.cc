#include "kernels/block_sparse_impl.h"
#include "kernels/sparse_scalar.h"

namespace onnxpress {

const BlockSparseKernels& block_sparse_kernels_scalar() {
  static constexpr BlockSparseKernels kernels = make_block_sparse_kernels<SparseScalar>();
  return kernels;
}

}  // namespace onnxpress
