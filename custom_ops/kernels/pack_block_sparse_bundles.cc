// Bundles of four outputs of a block-sparse weight, where blocks have one output.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/pack_block_sparse.h"
#include "kernels/tasks.h"

namespace onnxpress {
namespace {

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

}  // namespace

std::int64_t count_steps(const BlockSparseSource& s, const BlockSparseLayout& layout) {
  std::int64_t steps = 0;
  for_each_bundle(s, layout, [&](const Member* members, const std::vector<Stream>&) { steps += members[0].count; });
  return steps;
}

void pack_bundles(const BlockSparseSource& s, const BlockSparseLayout& layout, const BlockSparsePlaces& at,
                  std::uint8_t* memory) {
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

}  // namespace onnxpress
