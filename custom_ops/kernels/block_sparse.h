// y = activation(a * W + bias) for a weight of which only some blocks are stored; reference/block_sparse.py says what
// the codes of int8 mean. Integer sums are exact, and before the activation every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/blob.h"
#include "kernels/cpu_isa.h"
#include "kernels/matmul_int8.h"
#include "kernels/matmul_nbits.h"
#include "kernels/parallel.h"

namespace onnxpress {

// As a model stores it. The lengths of the arrays must have been checked against the sizes.
struct BlockSparseSource {
  std::int64_t K = 0, N = 0, block_k = 0, block_n = 0, blocks = 0;
  bool is_float = false;
  const std::int8_t* codes = nullptr;     // [blocks, block_n, block_k], or
  const float* floats = nullptr;          // the same
  const std::int32_t* indices = nullptr;  // [blocks]
  const std::int32_t* offsets = nullptr;  // [block_rows() + 1]
  const float* scales = nullptr;          // [N], of codes

  std::int64_t block_rows() const { return (N + block_n - 1) / block_n; }
  std::int64_t block_columns() const { return (K + block_k - 1) / block_k; }
};

// What is wrong with the sizes, or the empty text: to be asked before any array is touched.
std::string find_size_error(const BlockSparseSource& source);
// What is wrong with offsets, indices or padding, or the empty text. `find_size_error` must have found nothing.
std::string find_error(const BlockSparseSource& source);

// How many outputs of a block row the next strip has, where `left` remain.
inline std::int64_t strip_width(std::int64_t left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

inline constexpr std::int64_t kOutputsOfPart = 64;  // whose sums stay in the L1 cache
inline constexpr std::int64_t kGroupsOfBundle = 256;

struct BlockSparseLayout {
  std::int64_t K = 0, N = 0, block_n = 0;
  bool is_float = false;
  bool gathers = false;      // groups are of any four k
  std::int64_t groups = 0;   // of all block rows, or steps of all bundles
  std::int64_t entries = 0;  // of all tiles
  std::int64_t words = 0;    // of all entries

  bool bundles() const { return block_n == 1 && !gathers; }
};

// Packed, twice; plain pointers. A word is four int8 weights of one output at four k, or one float32 weight: its k are
// a group.
//
// For many rows, block row by block row: the groups with a stored weight, and for the outputs in strips of 4, then 2,
// then 1 the words [groups, outputs of the strip]. The groups of a block row are as many as make whole vectors of four
// words; those that fill up have weights of zero.
//
// Where blocks have one output, so that no group is for two, four outputs are a bundle: in each step, a group and a
// word for each. Within 64 outputs and kGroupsOfBundle groups of k, those of like length are bundled, and all made as
// long as the longest. Those groups of 16 or 32 rows stay in the L1 cache.
//
// For few rows, in tiles of 16 outputs: the groups with a weight that is not zero, which outputs have one, as a mask,
// and their words.
struct BlockSparseWeight {
  std::int64_t K = 0, N = 0, block_n = 0, block_rows = 0, tiles = 0;
  std::int64_t padded_k = 0;  // a multiple of 64
  bool is_float = false, gathers = false, bundles = false;
  std::int64_t chunks = 0;       // of kGroupsOfBundle groups, where there are bundles
  std::int64_t strip_words = 0;  // of all block rows

  // [block_rows + 1], or for 64 outputs after the other, in chunk after chunk of groups, the steps of bundles
  const std::int64_t* row_groups = nullptr;
  // [groups] or [steps, 4]: 64 times the group; where `gathers` [groups, 4]: 16 times the k
  const std::uint32_t* groups = nullptr;
  const std::uint8_t* strips = nullptr;   // [groups, block_n] or [steps, 4] words
  const std::uint8_t* bundled = nullptr;  // [bundles, 4]: which of the 64 outputs

  const std::int64_t* tile_entries = nullptr;  // [tiles + 1]
  const std::int64_t* tile_words = nullptr;    // [tiles]
  const std::uint32_t* entries = nullptr;      // [entries]: 4 times the group
  const std::uint16_t* masks = nullptr;        // [entries]
  const std::uint8_t* words = nullptr;         // [words] words, and 64 bytes

  const std::int32_t* sums = nullptr;  // [tiles * 16]: over k, of the codes
  const float* scales = nullptr;       // [tiles * 16]
};

// Whether there can be such a weight, and whether all places in a packed one lie within it: what reads it from a file
// asks.
bool is_valid(const BlockSparseLayout& layout);
bool is_safe(const BlockSparseLayout& layout, const BlockSparseWeight& weight);
std::size_t packed_size(const BlockSparseLayout& layout);
BlockSparseWeight view(const BlockSparseLayout& layout, const std::uint8_t* memory);

struct PackedBlockSparse {
  BlockSparseLayout layout;
  Blob memory;
  BlockSparseWeight view;  // into the memory
};

// Throws std::bad_alloc. `find_error` must have found nothing.
PackedBlockSparse pack(const BlockSparseSource& source);

struct BlockSparseProblem {
  const float* floats = nullptr;        // [M, K], or
  const std::uint8_t* codes = nullptr;  // [M, K], of `input`
  // Of an int8 weight: floats are rounded to `input`, or each row to a format of its own.
  bool is_static = false;
  Int8Format input;
  std::int64_t M = 0;
  const BlockSparseWeight* weight = nullptr;
  const float* bias = nullptr;  // [N] or null
  Activation activation = Activation::kNone;
  float* floats_out = nullptr;        // [M, N], or
  std::uint8_t* codes_out = nullptr;  // [M, N], rounded to `output`
  Int8Format output;
};

// Throws std::bad_alloc. Returns the name of the instruction set whose code ran.
const char* block_sparse_matmul(const BlockSparseProblem& problem, Isa isa, const Parallel& parallel);

}  // namespace onnxpress
