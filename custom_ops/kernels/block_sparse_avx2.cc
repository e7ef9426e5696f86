#include "kernels/block_sparse_impl.h"
#include "kernels/sparse_avx2.h"

namespace onnxpress {

extern constexpr BlockSparseKernels block_sparse_avx2 = make_block_sparse_kernels<SparseAvx2>();

}  // namespace onnxpress
