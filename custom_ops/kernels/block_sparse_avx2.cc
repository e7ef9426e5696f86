#include "kernels/block_sparse_impl.h"
#include "kernels/sparse_avx2.h"

namespace onnxpress {

const BlockSparseKernels& block_sparse_kernels_avx2() {
  static constexpr BlockSparseKernels kernels = make_block_sparse_kernels<SparseAvx2>();
  return kernels;
}

}  // namespace onnxpress
