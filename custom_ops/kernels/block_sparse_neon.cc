#include "kernels/block_sparse_impl.h"
#include "kernels/sparse_neon.h"

namespace onnxpress {

extern constexpr BlockSparseKernels block_sparse_neon = make_block_sparse_kernels<SparseNeon>();

}  // namespace onnxpress
