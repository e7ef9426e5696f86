// What the files that pack a block-sparse weight share: where each array lies, and how blocks are read.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/block_sparse.h"

namespace onnxpress {

// How many k share a word.
inline std::int64_t word_k(bool is_float) { return is_float ? 1 : 4; }

// The smallest strip of a block row tells how many groups make a vector of four words.
inline std::int64_t group_step(std::int64_t block_n) { return block_n % 2 != 0 ? 4 : block_n % 4 != 0 ? 2 : 1; }

// Of bundles.
std::int64_t chunks_of(const BlockSparseLayout& layout);

// Of the arrays of BlockSparseWeight, in bytes.
struct BlockSparsePlaces {
  std::size_t row_groups, groups, strips, bundled, tile_entries, tile_words, entries, masks, words, sums, scales, end;
};

// Reads single weights of one block row.
class BlockRow {
 public:
  BlockRow(const BlockSparseSource& source, std::int64_t row)
      : s_(source), at_(source.offsets[row]), end_(source.offsets[row + 1]) {}

  // The k must not fall from one call to the next; -1 and what is not stored are null.
  std::int64_t block_of(std::int64_t k) {
    if (k < 0) return -1;
    while (at_ < end_ && s_.indices[at_] < k / s_.block_k) ++at_;
    return at_ < end_ && s_.indices[at_] == k / s_.block_k ? at_ : -1;
  }

  // Writes a weight to its place in a word.
  void write(std::int64_t block, std::int64_t output, std::int64_t k, std::uint8_t* word, std::int64_t place) const {
    if (block < 0) return;
    const std::int64_t from = (block * s_.block_n + output) * s_.block_k + k % s_.block_k;
    if (s_.is_float) {
      std::memcpy(word, s_.floats + from, sizeof(float));
    } else {
      word[place] = static_cast<std::uint8_t>(s_.codes[from]);
    }
  }

 private:
  const BlockSparseSource& s_;
  std::int64_t at_, end_;
};

// How many groups or steps there are, and their words: of block rows as strips, of blocks with one output as bundles.
std::int64_t count_groups(const BlockSparseSource& source, bool gathers);
void pack_strips(const BlockSparseSource& source, const BlockSparseLayout& layout, const BlockSparsePlaces& at,
                 std::uint8_t* memory);
std::int64_t count_steps(const BlockSparseSource& source, const BlockSparseLayout& layout);
void pack_bundles(const BlockSparseSource& source, const BlockSparseLayout& layout, const BlockSparsePlaces& at,
                  std::uint8_t* memory);

// Sets the entries and words of all tiles, and writes them.
void count_tiles(const BlockSparseSource& source, BlockSparseLayout& layout);
void pack_tiles(const BlockSparseSource& source, const BlockSparseLayout& layout, const BlockSparsePlaces& at,
                std::uint8_t* memory);

}  // namespace onnxpress
