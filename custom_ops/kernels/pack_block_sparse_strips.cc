// Strips of the outputs of each block row of a block-sparse weight.
#include <vector>

#include "kernels/pack_block_sparse.h"

namespace onnxpress {
namespace {

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

// Writes the words of a block row's strips.
void pack_words(const BlockSparseSource& s, std::int64_t row, const std::vector<std::int64_t>& ks,
                std::int64_t per_group, std::uint8_t* words) {
  const std::int64_t groups = static_cast<std::int64_t>(ks.size()) / per_group;
  BlockRow blocks(s, row);
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

}  // namespace

std::int64_t count_groups(const BlockSparseSource& s, bool gathers) {
  Groups groups(s, gathers);
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < s.block_rows(); ++row) {
    count += static_cast<std::int64_t>(groups.of(row).size()) / groups.per_group();
  }
  return count;
}

void pack_strips(const BlockSparseSource& s, const BlockSparseLayout& layout, const BlockSparsePlaces& at,
                 std::uint8_t* memory) {
  auto* row_groups = reinterpret_cast<std::int64_t*>(memory + at.row_groups);
  auto* codes = reinterpret_cast<std::uint32_t*>(memory + at.groups);
  Groups groups(s, layout.gathers);
  for (std::int64_t row = 0; row < s.block_rows(); ++row) {
    const std::vector<std::int64_t>& ks = groups.of(row);
    pack_words(s, row, ks, groups.per_group(), memory + at.strips + 4 * row_groups[row] * s.block_n);
    const std::size_t step = layout.gathers || layout.is_float ? 1 : 4;
    for (std::size_t i = 0; i < ks.size(); i += step) *codes++ = group_code(layout, ks[i]);
    row_groups[row + 1] = row_groups[row] + static_cast<std::int64_t>(ks.size()) / groups.per_group();
  }
}

}  // namespace onnxpress
