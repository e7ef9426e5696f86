// From blocks to the two forms that block_sparse_matmul reads.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/block_sparse.h"
#include "kernels/pieces.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kMostBlock = 64;
constexpr std::int64_t kMostK = std::int64_t{1} << 26;  // 64 times a group fits in 32 bits
constexpr std::int64_t kMostElements = std::int64_t{1} << 40;

std::string text(std::int64_t number) { return std::to_string(number); }

template <class T>
std::string padding_fault(const BlockSparseSource& s, const T* values) {
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

// How many k share a word.
std::int64_t word_k(bool is_float) { return is_float ? 1 : 4; }

// The smallest strip of a block row tells how many groups make a vector of four words.
std::int64_t group_step(std::int64_t block_n) { return block_n % 2 != 0 ? 4 : block_n % 4 != 0 ? 2 : 1; }

std::int64_t chunks_of(const BlockSparseLayout& layout) {
  return ceil_div(ceil_div(layout.K, word_k(layout.is_float)), kGroupsOfBundle);
}

struct Places {
  std::size_t row_groups, groups, strips, bundled, tile_entries, tile_words, entries, masks, words, sums, scales, end;
};

Places places_of(const BlockSparseLayout& layout) {
  std::size_t end = 0;
  const auto place = [&](std::int64_t count, std::size_t size) {
    const std::size_t begin = end;
    end = (begin + static_cast<std::size_t>(count) * size + kCacheLine - 1) / kCacheLine * kCacheLine;
    return begin;
  };
  const std::int64_t rows = ceil_div(layout.N, layout.block_n), tiles = ceil_div(layout.N, kTile);
  Places at{};
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

// The k of a block row's groups: in fours, or single ones of float32; -1 fills up.
class Groups {
 public:
  Groups(const BlockSparseSource& source, bool gathers) : s_(source), gathers_(gathers) {}

  const std::vector<std::int64_t>& of(std::int64_t row) {
    ks_.clear();
    for (std::int64_t at = s_.offsets[row]; at < s_.offsets[row + 1]; ++at) {
      const std::int64_t begin = s_.indices[at] * s_.block_k;
      for (std::int64_t k = begin; k < begin + s_.block_k; ++k) add(k);
    }
    while (ks_.size() % static_cast<std::size_t>(per_group() * group_step(s_.block_n)) != 0) ks_.push_back(-1);
    return ks_;
  }

  std::int64_t per_group() const { return word_k(s_.is_float); }

 private:
  void add(std::int64_t k) {
    if (k < s_.K) {
      ks_.push_back(k);
    } else if (!gathers_ && !s_.is_float && k / 4 * 4 < s_.K) {
      ks_.push_back(-1);  // the end of the last four
    }
  }

  const BlockSparseSource& s_;
  const bool gathers_;
  std::vector<std::int64_t> ks_;
};

// The words of one output, of blocks that have no other, by rising groups.
class Stream {
 public:
  Stream(const BlockSparseSource& source, std::int64_t output)
      : s_(source),
        per_block_(source.block_k / word_k(source.is_float)),
        at_(source.offsets[output] * per_block_),
        end_(source.offsets[output + 1] * per_block_) {}

  // The group and the word that follow after `i` others.
  std::int64_t group(std::int64_t i) const {
    return s_.indices[(at_ + i) / per_block_] * per_block_ + (at_ + i) % per_block_;
  }
  void copy(std::int64_t i, std::uint8_t* word) const {
    const void* words = s_.is_float ? static_cast<const void*>(s_.floats) : s_.codes;
    std::memcpy(word, static_cast<const std::uint8_t*>(words) + 4 * (at_ + i), 4);
  }
  // How many are of groups below that.
  std::int64_t count(std::int64_t end) const {
    std::int64_t i = 0;
    while (at_ + i < end_ && group(i) < end) ++i;
    return i;
  }
  void skip(std::int64_t count) { at_ += count; }

 private:
  const BlockSparseSource& s_;
  const std::int64_t per_block_;
  std::int64_t at_, end_;
};

struct Member {
  std::int64_t output;  // of the 64
  std::int64_t count;   // of its words
};

// use(four members, streams of the 64 outputs) for all bundles, as they follow each other.
template <class Use>
void for_each_bundle(const BlockSparseSource& s, const BlockSparseLayout& layout, const Use& use) {
  const std::int64_t groups = ceil_div(s.K, word_k(s.is_float));
  std::vector<Stream> streams;
  std::vector<Member> members;
  for (std::int64_t first = 0; first < s.N; first += kOutputsOfPart) {
    const std::int64_t outputs = std::min(kOutputsOfPart, s.N - first);
    streams.clear();
    for (std::int64_t n = 0; n < outputs; ++n) streams.emplace_back(s, first + n);
    for (std::int64_t chunk = 1; chunk <= chunks_of(layout); ++chunk) {
      members.clear();
      for (std::int64_t n = 0; n < outputs; ++n) {
        members.push_back({n, streams[static_cast<std::size_t>(n)].count(std::min(chunk * kGroupsOfBundle, groups))});
      }
      for (std::int64_t n = outputs; n % 4 != 0; ++n) members.push_back({n, 0});  // whose sums nobody reads
      std::stable_sort(members.begin(), members.end(),
                       [](const Member& a, const Member& b) { return a.count > b.count; });
      for (std::size_t i = 0; i < members.size(); i += 4) use(&members[i], streams);
      for (const Member& member : members) {
        if (member.count > 0) streams[static_cast<std::size_t>(member.output)].skip(member.count);
      }
    }
  }
}

void pack_bundles(const BlockSparseSource& s, const BlockSparseLayout& layout, const Places& at, std::uint8_t* memory) {
  auto* steps = reinterpret_cast<std::int64_t*>(memory + at.row_groups);
  auto* groups = reinterpret_cast<std::uint32_t*>(memory + at.groups);
  std::uint8_t *words = memory + at.strips, *bundled = memory + at.bundled;
  for_each_bundle(s, layout, [&](const Member* members, const std::vector<Stream>& streams) {
    for (int n = 0; n < 4; ++n) {
      const Member& member = members[n];
      *bundled++ = static_cast<std::uint8_t>(member.output);
      for (std::int64_t i = 0; i < member.count; ++i) {
        const Stream& stream = streams[static_cast<std::size_t>(member.output)];
        groups[4 * i + n] = static_cast<std::uint32_t>(stream.group(i) * 64);
        stream.copy(i, words + 4 * (4 * i + n));
      }
    }
    const std::int64_t count = members[0].count;  // the longest
    groups += 4 * count;
    words += 16 * count;
    steps[1] = steps[0] + count;
    ++steps;
  });
}

// Reads single weights of one block row.
class Row {
 public:
  Row(const BlockSparseSource& source, std::int64_t row)
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

// The words of a block row's strips.
void pack_strips(const BlockSparseSource& s, std::int64_t row, const std::vector<std::int64_t>& ks,
                 std::int64_t per_group, std::uint8_t* words) {
  const std::int64_t groups = static_cast<std::int64_t>(ks.size()) / per_group;
  Row blocks(s, row);
  for (std::size_t i = 0; i < ks.size(); ++i) {
    const std::int64_t block = blocks.block_of(ks[i]);
    const std::int64_t group = static_cast<std::int64_t>(i) / per_group,
                       place = static_cast<std::int64_t>(i) % per_group;
    for (std::int64_t first = 0, width = 0; first < s.block_n; first += width) {
      width = strip_width(s.block_n - first);
      for (std::int64_t output = 0; output < width; ++output) {
        blocks.write(block, first + output, ks[i], words + 4 * (groups * first + group * width + output), place);
      }
    }
  }
}

std::uint32_t group_code(const BlockSparseLayout& layout, std::int64_t k) {
  const auto at = static_cast<std::uint32_t>(std::max<std::int64_t>(k, 0));
  if (layout.is_float) return at * 64;
  return layout.gathers ? at * 16 : at / 4 * 64;
}

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
    const Row blocks(s_, row);
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

void pack_tiles(const BlockSparseSource& s, const BlockSparseLayout& layout, const Places& at, std::uint8_t* memory) {
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

BlockSparseLayout layout_of(const BlockSparseSource& s) {
  BlockSparseLayout layout;
  layout.K = s.K;
  layout.N = s.N;
  layout.block_n = s.block_n;
  layout.is_float = s.is_float;
  layout.gathers = !layout.is_float && s.block_k % 4 != 0;
  if (layout.bundles()) {
    for_each_bundle(s, layout,
                    [&](const Member* members, const std::vector<Stream>&) { layout.groups += members[0].count; });
  } else {
    Groups groups(s, layout.gathers);
    for (std::int64_t row = 0; row < s.block_rows(); ++row) {
      layout.groups += static_cast<std::int64_t>(groups.of(row).size()) / groups.per_group();
    }
  }
  Tile full(s);
  for (std::int64_t tile = 0; tile < ceil_div(s.N, kTile); ++tile) {
    full.fill(tile);
    full.for_each([&](std::int64_t, unsigned mask, const std::uint32_t*) {
      ++layout.entries;
      layout.words += __builtin_popcount(mask);
    });
  }
  return layout;
}

void pack_block_rows(const BlockSparseSource& s, const BlockSparseLayout& layout, const Places& at,
                     std::uint8_t* memory) {
  auto* row_groups = reinterpret_cast<std::int64_t*>(memory + at.row_groups);
  auto* codes = reinterpret_cast<std::uint32_t*>(memory + at.groups);
  Groups groups(s, layout.gathers);
  for (std::int64_t row = 0; row < s.block_rows(); ++row) {
    const std::vector<std::int64_t>& ks = groups.of(row);
    pack_strips(s, row, ks, groups.per_group(), memory + at.strips + 4 * row_groups[row] * s.block_n);
    const std::size_t step = layout.gathers || layout.is_float ? 1 : 4;
    for (std::size_t i = 0; i < ks.size(); i += step) *codes++ = group_code(layout, ks[i]);
    row_groups[row + 1] = row_groups[row] + static_cast<std::int64_t>(ks.size()) / groups.per_group();
  }
}

}  // namespace

std::string size_fault(const BlockSparseSource& s) {
  if (s.K < 1 || s.K > kMostK) return "K is " + text(s.K) + ", must be 1 to " + text(kMostK);
  if (s.N < 1 || s.N > kMostElements / s.K) return "N is " + text(s.N) + ", must be a positive size that fits K";
  for (const auto& [name, size] : {std::pair("block_k", s.block_k), std::pair("block_n", s.block_n)}) {
    if (size < 1 || size > kMostBlock) return std::string(name) + " is " + text(size) + ", must be 1 to 64";
  }
  return "";
}

std::string fault(const BlockSparseSource& s) {
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
  }
  return s.is_float ? padding_fault(s, s.floats) : padding_fault(s, s.codes);
}

bool is_valid(const BlockSparseLayout& layout) {
  const auto is_count = [](std::int64_t count) { return count >= 0 && count <= kMostElements; };
  return layout.K >= 1 && layout.K <= kMostK && layout.N >= 1 && layout.N <= kMostElements / layout.K &&
         layout.block_n >= 1 && layout.block_n <= kMostBlock && is_count(layout.groups) && is_count(layout.entries) &&
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
  for (std::int64_t i = 0; i < (w.bundles ? lists * 4 : 0); ++i) {
    // As many lines as there are outputs, in whole tiles.
    if (w.bundled[i] >= std::min(kOutputsOfPart, w.tiles * kTile)) return false;
  }
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
  const Places at = places_of(layout);
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
  const Places at = places_of(layout);
  auto allocated = make_aligned<std::uint8_t>(at.end);
  std::uint8_t* memory = allocated.get();
  if (layout.bundles()) {
    pack_bundles(s, layout, at, memory);
  } else {
    pack_block_rows(s, layout, at, memory);
  }
  pack_tiles(s, layout, at, memory);
  if (s.scales != nullptr) std::memcpy(memory + at.scales, s.scales, static_cast<std::size_t>(s.N) * sizeof(float));
  return {layout, make_blob(std::move(allocated), at.end), view(layout, memory)};
}

}  // namespace onnxpress
