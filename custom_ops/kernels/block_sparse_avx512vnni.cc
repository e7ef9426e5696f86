#include "kernels/block_sparse_impl.h"
#include "kernels/sparse_avx512vnni.h"

namespace onnxpress {

const BlockSparseKernels& block_sparse_kernels_avx512vnni() {
  static constexpr BlockSparseKernels kernels = make_block_sparse_kernels<SparseAvx512Vnni>();
  return kernels;
}

}  // namespace onnxpress
