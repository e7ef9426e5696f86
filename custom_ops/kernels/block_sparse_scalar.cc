#include "kernels/block_sparse_impl.h"
#include "kernels/sparse_scalar.h"

namespace onnxpress {

extern constexpr BlockSparseKernels block_sparse_scalar = make_block_sparse_kernels<SparseScalar>();

}  // namespace onnxpress
