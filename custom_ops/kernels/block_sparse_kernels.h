// The table of functions that every instruction set fills for block_sparse_matmul.
#pragma once

#include <cstdint>

#include "kernels/block_sparse.h"

namespace onnxpress {

// Rows of A as words: four uint8 codes, with the bits of `flip` changed, or a float32.
//
// For many rows, in tiles of 16 rows, `tiles_at_once` of which lie side by side, or in one tile of 8: [groups,
// tiles_at_once, tile] words, or where the weight gathers [K, tiles_at_once, tile] codes. For few rows, one after the
// other.
struct SparseRows {
  std::uint8_t* words;
  std::int64_t row_bytes;      // of all words of one row
  std::int64_t tile;           // rows, 16 or 8
  std::int64_t tiles_at_once;  // 1, 2 or 4; 0 for few rows
  std::int32_t zero_point;     // of codes before their bits are changed
  std::uint8_t flip;           // 128 where signed bytes are multiplied, else 0
  float* scales;               // [M], of codes
  const std::int32_t* starts;  // [outputs of all block rows]: minus the zero point times the sum of a column's codes
};

constexpr std::int64_t kChunk = 128;  // groups that are gathered at once, to stay in the L1 cache

// Block rows from a multiple of 16 outputs on, in parts of at most `part` block rows (such a multiple too), for
// tile * tiles_at_once rows of A.
struct SparseTask {
  std::int64_t first_row;  // of A
  std::int64_t block_row, end, part;
  std::uint8_t* sums;   // [outputs of a part, tiles_at_once, 16] words
  std::uint8_t* chunk;  // [kChunk, tiles_at_once, 16] words
};

struct BlockSparseKernels {
  const char* isa;
  std::uint8_t flip;  // as in SparseRows
  std::int64_t max_tiles_at_once;
  bool has_8_row_tiles;                                // tiles of 8 rows, of codes
  std::int64_t max_few_rows_int8, max_few_rows_float;  // of a problem for multiply_few
  void (*load_tile)(const BlockSparseProblem&, const SparseRows&, std::int64_t first_row);
  void (*load_row)(const BlockSparseProblem&, const SparseRows&, std::int64_t row);
  void (*multiply)(const BlockSparseProblem&, const SparseRows&, const SparseTask&);
  void (*multiply_few)(const BlockSparseProblem&, const SparseRows&, std::int64_t tile, std::int64_t end);
};

}  // namespace onnxpress
