// From blocks to the two forms that block_sparse_matmul reads.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/pack_block_sparse.h"
#include "kernels/tasks.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kMaxBlock = 64;
constexpr std::int64_t kMaxK = std::int64_t{1} << 26;  // 64 times a group fits in 32 bits
constexpr std::int64_t kMaxElements = std::int64_t{1} << 40;
// Of an int8 weight, so many products of codes, less their zero point, fit in a sum of int32.
constexpr std::int64_t kMaxOfOutput = std::numeric_limits<std::int32_t>::max() / (255 * 128);

std::string text(std::int64_t number) { return std::to_string(number); }

template <class T>
std::string find_padding_error(const BlockSparseSource& s, const T* values) {
  for (std::int64_t row = 0; row < s.block_rows(); ++row) {
    const std::int64_t outputs = std::min(s.block_n, s.N - row * s.block_n);
    for (std::int64_t at = s.offsets[row]; at < s.offsets[row + 1]; ++at) {
      const std::int64_t depth = std::min(s.block_k, s.K - s.indices[at] * s.block_k);
      if (outputs == s.block_n && depth == s.block_k) continue;
      const T* block = values + at * s.block_n * s.block_k;
      for (std::int64_t i = 0; i < s.block_n * s.block_k; ++i) {
        const bool inside = i / s.block_k < outputs && i % s.block_k < depth;
        if (!inside && block[i] != T{0}) return "values of block " + text(at) + " beyond K or N are not zero";
      }
    }
  }
  return "";
}

BlockSparsePlaces places_of(const BlockSparseLayout& layout) {
  std::size_t end = 0;
  const auto place = [&](std::int64_t count, std::size_t size) {
    const std::size_t begin = end;
    end = (begin + static_cast<std::size_t>(count) * size + kCacheLine - 1) / kCacheLine * kCacheLine;
    return begin;
  };
  const std::int64_t rows = ceil_div(layout.N, layout.block_n), tiles = ceil_div(layout.N, kTile);
  BlockSparsePlaces at{};
  const bool bundles = layout.bundles();
  const std::int64_t bundled = bundles ? ceil_div(layout.N, 4) * chunks_of(layout) : 0;
  at.row_groups = place((bundles ? bundled : rows) + 1, sizeof(std::int64_t));
  at.groups = place(layout.groups * (layout.gathers || bundles ? 4 : 1), sizeof(std::uint32_t));
  at.strips = place(layout.groups * (bundles ? 4 : layout.block_n), 4);
  at.bundled = place(bundled * 4, 1);
  at.tile_entries = place(tiles + 1, sizeof(std::int64_t));
  at.tile_words = place(tiles, sizeof(std::int64_t));
  at.entries = place(layout.entries, sizeof(std::uint32_t));
  at.masks = place(layout.entries, sizeof(std::uint16_t));
  at.words = place(layout.words + kTile, 4);
  at.sums = place(tiles * kTile, sizeof(std::int32_t));
  at.scales = place(tiles * kTile, sizeof(float));
  at.end = end;
  return at;
}

BlockSparseLayout layout_of(const BlockSparseSource& s) {
  BlockSparseLayout layout;
  layout.K = s.K;
  layout.N = s.N;
  layout.block_n = s.block_n;
  layout.is_float = s.is_float;
  layout.gathers = !layout.is_float && s.block_k % 4 != 0;
  layout.groups = layout.bundles() ? count_steps(s, layout) : count_groups(s, layout.gathers);
  count_tiles(s, layout);
  return layout;
}

// Outputs of bundles are numbered within their 64, of which the last have as many as there are, in whole tiles.
bool are_bundles_safe(const BlockSparseWeight& w) {
  const std::uint8_t* outputs = w.bundled;
  for (std::int64_t first = 0; first < w.N; first += kOutputsOfPart) {
    const std::int64_t most = std::min(kOutputsOfPart, w.tiles * kTile - first);
    const std::int64_t bundles = std::min(kOutputsOfPart / 4, ceil_div(w.N - first, 4));
    for (const std::uint8_t* end = outputs + bundles * w.chunks * 4; outputs < end; ++outputs) {
      if (*outputs >= most) return false;
    }
  }
  return true;
}

}  // namespace

std::int64_t chunks_of(const BlockSparseLayout& layout) {
  return ceil_div(ceil_div(layout.K, word_k(layout.is_float)), kGroupsOfBundle);
}

std::string find_size_error(const BlockSparseSource& s) {
  if (s.K < 1 || s.K > kMaxK) return "K is " + text(s.K) + ", must be 1 to " + text(kMaxK);
  if (s.N < 1 || s.N > kMaxElements / s.K) return "N is " + text(s.N) + ", must be a positive size that fits K";
  for (const auto& [name, size] : {std::pair("block_k", s.block_k), std::pair("block_n", s.block_n)}) {
    if (size < 1 || size > kMaxBlock) return std::string(name) + " is " + text(size) + ", must be 1 to 64";
  }
  return "";
}

std::string find_error(const BlockSparseSource& s) {
  const std::int64_t rows = s.block_rows(), columns = s.block_columns();
  if (s.offsets[0] != 0) return "offsets begin with " + text(s.offsets[0]) + ", must begin with 0";
  for (std::int64_t row = 0; row < rows; ++row) {
    if (s.offsets[row + 1] < s.offsets[row]) return "offsets fall after block row " + text(row);
  }
  if (s.offsets[rows] != s.blocks) {
    return "offsets end with " + text(s.offsets[rows]) + ", but there are " + text(s.blocks) + " blocks";
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t last = -1;
    for (std::int64_t at = s.offsets[row]; at < s.offsets[row + 1]; ++at) {
      const std::int64_t index = s.indices[at];
      if (index < 0 || index >= columns) {
        return "indices have " + text(index) + " at " + text(at) + ", must be 0 to " + text(columns - 1);
      }
      if (index <= last) return "indices do not rise at " + text(at) + ", in block row " + text(row);
      last = index;
    }
    const std::int64_t stored = (s.offsets[row + 1] - s.offsets[row]) * s.block_k;
    if (!s.is_float && stored > kMaxOfOutput) {
      return "block row " + text(row) + " stores " + text(stored) + " int8 values for each output, whose sums fit in" +
             " int32 for at most " + text(kMaxOfOutput) + "; store float32 values";
    }
  }
  return s.is_float ? find_padding_error(s, s.floats) : find_padding_error(s, s.codes);
}

bool is_valid(const BlockSparseLayout& layout) {
  const auto is_count = [](std::int64_t count) { return count >= 0 && count <= kMaxElements; };
  return layout.K >= 1 && layout.K <= kMaxK && layout.N >= 1 && layout.N <= kMaxElements / layout.K &&
         layout.block_n >= 1 && layout.block_n <= kMaxBlock && is_count(layout.groups) && is_count(layout.entries) &&
         is_count(layout.words) && !(layout.is_float && layout.gathers);
}

bool is_safe(const BlockSparseLayout& layout, const BlockSparseWeight& w) {
  const std::int64_t step = w.bundles ? 1 : group_step(w.block_n), k_groups = ceil_div(w.K, word_k(w.is_float));
  const std::int64_t lists = w.bundles ? ceil_div(w.N, 4) * w.chunks : w.block_rows;
  if (w.row_groups[0] != 0 || w.row_groups[lists] != layout.groups) return false;
  for (std::int64_t row = 0; row < lists; ++row) {
    const std::int64_t count = w.row_groups[row + 1] - w.row_groups[row];
    if (count < 0 || count > layout.groups || count % step != 0) return false;
  }
  for (std::int64_t i = 0; i < layout.groups * (w.gathers || w.bundles ? 4 : 1); ++i) {
    if (w.groups[i] / 64 >= k_groups || w.groups[i] % (w.gathers ? 16 : 64) != 0) return false;
  }
  if (w.bundles && !are_bundles_safe(w)) return false;
  std::int64_t entry = 0, word = 0;
  if (w.tile_entries[0] != 0 || w.tile_entries[w.tiles] != layout.entries) return false;
  for (std::int64_t tile = 0; tile < w.tiles; ++tile) {
    const std::int64_t end = w.tile_entries[tile + 1];
    if (w.tile_words[tile] != word || end < entry || end > layout.entries) return false;
    for (; entry < end; ++entry) {
      if (w.entries[entry] % 4 != 0 || w.entries[entry] / 4 >= k_groups) return false;
      word += __builtin_popcount(w.masks[entry]);
    }
  }
  return word == layout.words;
}

std::size_t packed_size(const BlockSparseLayout& layout) { return places_of(layout).end; }

BlockSparseWeight view(const BlockSparseLayout& layout, const std::uint8_t* memory) {
  const BlockSparsePlaces at = places_of(layout);
  BlockSparseWeight w;
  w.K = layout.K;
  w.N = layout.N;
  w.block_n = layout.block_n;
  w.block_rows = ceil_div(w.N, w.block_n);
  w.tiles = ceil_div(w.N, kTile);
  w.padded_k = ceil_div(w.K, 64) * 64;
  w.is_float = layout.is_float;
  w.gathers = layout.gathers;
  w.bundles = layout.bundles();
  w.chunks = w.bundles ? chunks_of(layout) : 0;
  w.strip_words = layout.groups * (w.bundles ? 4 : w.block_n);
  w.row_groups = reinterpret_cast<const std::int64_t*>(memory + at.row_groups);
  w.groups = reinterpret_cast<const std::uint32_t*>(memory + at.groups);
  w.strips = memory + at.strips;
  w.bundled = memory + at.bundled;
  w.tile_entries = reinterpret_cast<const std::int64_t*>(memory + at.tile_entries);
  w.tile_words = reinterpret_cast<const std::int64_t*>(memory + at.tile_words);
  w.entries = reinterpret_cast<const std::uint32_t*>(memory + at.entries);
  w.masks = reinterpret_cast<const std::uint16_t*>(memory + at.masks);
  w.words = memory + at.words;
  w.sums = reinterpret_cast<const std::int32_t*>(memory + at.sums);
  w.scales = reinterpret_cast<const float*>(memory + at.scales);
  return w;
}

PackedBlockSparse pack(const BlockSparseSource& s) {
  const BlockSparseLayout layout = layout_of(s);
  const BlockSparsePlaces at = places_of(layout);
  auto allocated = make_aligned<std::uint8_t>(at.end);
  std::uint8_t* memory = allocated.get();
  if (layout.bundles()) {
    pack_bundles(s, layout, at, memory);
  } else {
    pack_strips(s, layout, at, memory);
  }
  pack_tiles(s, layout, at, memory);
  if (s.scales != nullptr) std::memcpy(memory + at.scales, s.scales, static_cast<std::size_t>(s.N) * sizeof(float));
  return {layout, make_blob(std::move(allocated), at.end), view(layout, memory)};
}

}  // namespace onnxpress
