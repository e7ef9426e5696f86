// Tiles of 16 outputs of a block-sparse weight.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/pack_block_sparse.h"
#include "kernels/tasks.h"

namespace onnxpress {
namespace {

// The groups of a tile of 16 outputs with a stored weight, as lines of 16 words.
class Tile {
 public:
  explicit Tile(const BlockSparseSource& source) : s_(source), per_group_(word_k(source.is_float)) {}

  void fill(std::int64_t tile) {
    const std::int64_t begin = tile * kTile, end = std::min(begin + kTile, s_.N);
    find_groups(begin / s_.block_n, ceil_div(end, s_.block_n));
    words_.assign(groups_.size() * kTile, 0);
    for (std::int64_t n = begin; n < end; ++n) fill_output(n, n - begin);
  }

  // work(group, mask, line) for each group that has a weight, by rising groups.
  template <class Work>
  void for_each(const Work& work) const {
    for (std::size_t at = 0; at < groups_.size(); ++at) {
      const std::uint32_t* line = words_.data() + at * kTile;
      unsigned mask = 0;
      for (int i = 0; i < kTile; ++i) mask |= (line[i] != 0 ? 1u : 0u) << i;
      if (mask != 0) work(groups_[at], mask, line);
    }
  }

 private:
  void find_groups(std::int64_t first_row, std::int64_t end_row) {
    groups_.clear();
    for (std::int64_t at = s_.offsets[first_row]; at < s_.offsets[end_row]; ++at) {
      const std::int64_t k = s_.indices[at] * s_.block_k, end = std::min(k + s_.block_k, s_.K);
      for (std::int64_t group = k / per_group_; group < ceil_div(end, per_group_); ++group) groups_.push_back(group);
    }
    std::sort(groups_.begin(), groups_.end());
    groups_.erase(std::unique(groups_.begin(), groups_.end()), groups_.end());
  }

  void fill_output(std::int64_t n, std::int64_t lane) {
    const std::int64_t row = n / s_.block_n;
    const BlockRow blocks(s_, row);
    for (std::int64_t at = s_.offsets[row]; at < s_.offsets[row + 1]; ++at) {
      const std::int64_t begin = s_.indices[at] * s_.block_k, end = std::min(begin + s_.block_k, s_.K);
      const std::int64_t first = begin / per_group_;  // the groups of a block follow each other
      const auto line = std::lower_bound(groups_.begin(), groups_.end(), first) - groups_.begin();
      for (std::int64_t k = begin; k < end; ++k) {
        const auto word = static_cast<std::size_t>((line + k / per_group_ - first) * kTile + lane);
        blocks.write(at, n % s_.block_n, k, reinterpret_cast<std::uint8_t*>(&words_[word]), k % per_group_);
      }
    }
  }

  const BlockSparseSource& s_;
  const std::int64_t per_group_;
  std::vector<std::int64_t> groups_;
  std::vector<std::uint32_t> words_;
};

}  // namespace

void count_tiles(const BlockSparseSource& s, BlockSparseLayout& layout) {
  Tile full(s);
  for (std::int64_t tile = 0; tile < ceil_div(s.N, kTile); ++tile) {
    full.fill(tile);
    full.for_each([&](std::int64_t, unsigned mask, const std::uint32_t*) {
      ++layout.entries;
      layout.words += __builtin_popcount(mask);
    });
  }
}

void pack_tiles(const BlockSparseSource& s, const BlockSparseLayout& layout, const BlockSparsePlaces& at,
                std::uint8_t* memory) {
  auto* tile_entries = reinterpret_cast<std::int64_t*>(memory + at.tile_entries);
  auto* tile_words = reinterpret_cast<std::int64_t*>(memory + at.tile_words);
  auto* entries = reinterpret_cast<std::uint32_t*>(memory + at.entries);
  auto* masks = reinterpret_cast<std::uint16_t*>(memory + at.masks);
  auto* sums = reinterpret_cast<std::uint32_t*>(memory + at.sums);  // modulo 2^32
  std::uint8_t* words = memory + at.words;
  Tile full(s);
  std::int64_t entry = 0, word = 0;
  for (std::int64_t tile = 0; tile < ceil_div(s.N, kTile); ++tile) {
    tile_words[tile] = word;
    full.fill(tile);
    full.for_each([&](std::int64_t group, unsigned mask, const std::uint32_t* line) {
      entries[entry] = static_cast<std::uint32_t>(group * 4);
      masks[entry++] = static_cast<std::uint16_t>(mask);
      for (std::int64_t i = 0; i < kTile; ++i) {
        if ((mask >> i & 1u) == 0) continue;
        std::memcpy(words + 4 * word++, line + i, 4);
        for (int shift = 0; shift < 32 && !layout.is_float; shift += 8) {
          sums[tile * kTile + i] += static_cast<std::uint32_t>(static_cast<std::int8_t>(line[i] >> shift));
        }
      }
    });
    tile_entries[tile + 1] = entry;
  }
}

}  // namespace onnxpress
