#include "kernels/block_sparse_impl.h"
#include "kernels/sparse_avx512vnni.h"

namespace onnxpress {

extern constexpr BlockSparseKernels block_sparse_avx512vnni = make_block_sparse_kernels<SparseAvx512Vnni>();

}  // namespace onnxpress
