// What a node BlockSparseMatMul says, checked, and its computation; for the custom op and for the execution provider.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/block_sparse.h"
#include "ort/ort.h"

namespace onnxpress {

enum BlockSparseInput : std::size_t {
  kBlockA,
  kBlockValues,
  kBlockIndices,
  kBlockOffsets,
  kBlockScales,
  kBlockBias,
  kBlockAScale,
  kBlockAZeroPoint,
  kBlockYScale,
  kBlockYZeroPoint,
  kBlockInputs
};

inline constexpr const char* kBlockInputNames[kBlockInputs] = {
    "A", "values", "indices", "offsets", "scales", "bias", "a_scale", "a_zero_point", "y_scale", "y_zero_point"};

struct BlockSparseAttributes {
  std::int64_t K, N, block_k, block_n;
  std::string activation;
};

// All that a run needs but the weight.
struct BlockSparseEpilogue {
  std::string label;      // what messages begin with
  bool is_uint8 = false;  // activations
  bool is_static = false;
  Int8Format input;
  Activation activation = Activation::kNone;
  std::optional<Int8Format> output;
};

// The constants of a node, as it stores them.
struct BlockSparseNode {
  BlockSparseSource source;
  const float* bias = nullptr;  // [N] or null
  BlockSparseEpilogue epilogue;
};

// `constants` has null for what is absent; that of A is not asked for. Throws InvalidArgument, with the label, for
// whatever is wrong.
BlockSparseNode read_block_sparse(const ort::Api& api, const std::string& label,
                                  const BlockSparseAttributes& attributes, ort::ElementType a,
                                  const ort::Value* const (&constants)[kBlockInputs]);

class BlockSparseProduct {
 public:
  // Packs the weight.
  BlockSparseProduct(const ort::Api& api, const BlockSparseNode& node, Isa isa);
  // What was packed and saved, and is checked already.
  BlockSparseProduct(const ort::Api& api, PackedBlockSparse weight, Blob bias, BlockSparseEpilogue epilogue, Isa isa);

  // Writes the first output. Throws InvalidArgument for a wrong shape.
  void compute(ort::KernelContext* context, const ort::Value* a, const Parallel& pool) const;

  const PackedBlockSparse& weight() const { return weight_; }
  const Blob& bias() const { return bias_; }
  const BlockSparseEpilogue& epilogue() const { return epilogue_; }

 private:
  const ort::Api& api_;
  PackedBlockSparse weight_;
  Blob bias_;
  BlockSparseEpilogue epilogue_;
  Isa isa_;
};

}  // namespace onnxpress
