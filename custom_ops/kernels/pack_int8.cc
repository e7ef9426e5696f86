// From the ONNX layouts to the lines that matmul_int8 reads.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/matmul_int8.h"
#include "kernels/tasks.h"

namespace onnxpress {
namespace {

// A word a column with the codes of four k, the first in the lowest byte. Compilers split it into the vectors of the
// machine.
using Words = std::uint32_t __attribute__((vector_size(4 * kTile)));
using Ints = std::int32_t __attribute__((vector_size(4 * kTile)));

// Code by code, at the edges of a weight: zero beyond.
void read_codes(const Int8Source& source, std::int64_t column, std::int64_t k, std::uint8_t flip, Words& words) {
  words = Words{};
  for (std::int64_t i = 0; i < std::min<std::int64_t>(4, source.K - k); ++i) {
    for (std::int64_t c = 0; c < std::min(kTile, source.N - column); ++c) {
      const std::int64_t at = source.transposed ? (column + c) * source.K + k + i : (k + i) * source.N + column + c;
      words[c] |= static_cast<std::uint32_t>(source.codes[at] ^ flip) << (8 * i);
    }
  }
}

// Four rows of 16 codes, transposed.
void read_rows(const std::uint8_t* from, std::int64_t N, Words& words) {
  using Bytes = std::uint8_t __attribute__((vector_size(kTile)));
  using Pairs = std::uint16_t __attribute__((vector_size(2 * kTile)));
  Pairs rows[4];
  for (int i = 0; i < 4; ++i, from += N) {
    Bytes row;
    std::memcpy(&row, from, sizeof row);
    rows[i] = __builtin_convertvector(row, Pairs);
  }
  const Pairs low = rows[0] | rows[1] << 8, high = rows[2] | rows[3] << 8;
  words = __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
}

void read_columns(const std::uint8_t* from, std::int64_t K, Words& words) {
  for (int c = 0; c < kTile; ++c, from += K) {
    std::uint32_t four;
    std::memcpy(&four, from, sizeof four);
    words[c] = four;
  }
}

// The signed codes of a tile.
void read_group(const Int8Source& source, std::int64_t column, std::int64_t k, Words& words) {
  const std::uint8_t flip = source.is_signed ? 0 : 128;
  if (source.K - k < 4 || source.N - column < kTile) return read_codes(source, column, k, flip, words);
  if (source.transposed) {
    read_columns(source.codes + column * source.K + k, source.K, words);
  } else {
    read_rows(source.codes + k * source.N + column, source.N, words);
  }
  words ^= flip * 0x01010101u;
}

void add_bytes(const Words& words, std::int32_t* sums) {
  Ints sum;
  std::memcpy(&sum, sums, sizeof sum);
  for (int shift : {0, 8, 16, 24}) sum += reinterpret_cast<Ints>(words << shift) >> 24;
  std::memcpy(sums, &sum, sizeof sum);
}

std::int32_t signed_zero_point(const Int8Source& source, std::int64_t n) {
  const std::uint8_t point =
      source.zero_points == nullptr ? std::uint8_t{0} : source.zero_points[source.zero_point_per_column ? n : 0];
  return source.is_signed ? static_cast<std::int8_t>(point) : point - 128;
}

bool has_zero_points(const Int8Source& source) {
  for (std::int64_t n = 0; n < (source.zero_point_per_column ? source.N : 1); ++n) {
    if (signed_zero_point(source, n) != 0) return true;
  }
  return false;
}

// Where the parts of a packed weight lie in its memory.
struct Places {
  std::size_t sums, scales, zero_points, end;
};

// Whether a sum of products of the codes without their zero points can overflow an int32.
bool is_long(const Int8Layout& layout) {
  const std::int64_t most = 255 * (layout.zero_points ? 255 : 128);
  return layout.K > std::numeric_limits<std::int32_t>::max() / most;
}

// Of the segment of a long weight that begins at k.
Int8Layout segment_of(const Int8Layout& layout, std::int64_t k) {
  return {std::min(kSplitK, layout.K - k), layout.N, layout.zero_points};
}

Places places_of(const Int8Layout& layout, const Int8Weight& w) {
  const auto numbers = static_cast<std::size_t>(w.tiles * kTile) * sizeof(float);
  Places at{};
  at.sums = static_cast<std::size_t>(w.tiles * kTile * w.padded_k);
  at.scales = at.sums + numbers;
  at.zero_points = at.scales + numbers;
  at.end = at.zero_points + (layout.zero_points ? numbers : 0);
  return at;
}

Int8Weight sizes_of(const Int8Layout& layout) {
  Int8Weight w;
  w.K = layout.K;
  w.N = layout.N;
  w.tiles = ceil_div(w.N, kTile);
  w.padded_k = std::max<std::int64_t>(ceil_div(w.K, 64), 1) * 64;
  w.is_long = is_long(layout);
  w.has_zero_points = layout.zero_points;
  return w;
}

// Along the rows of a [K, N] weight, several tiles at a time: whole cache lines.
void pack_codes(const Int8Source& source, const Int8Weight& w, std::int64_t first, std::int64_t end,
                std::uint8_t* codes, std::int32_t* sums) {
  for (std::int64_t k = 0; k < w.K; k += 4) {
    for (std::int64_t tile = first; tile < end; ++tile) {
      Words words;
      read_group(source, tile * kTile, k, words);
      std::memcpy(codes + (tile * w.padded_k + k) * kTile, &words, sizeof words);
      add_bytes(words, sums + tile * kTile);
    }
  }
}

void pack_into(const Int8Source& source, const Int8Layout& layout, const Parallel& parallel, std::uint8_t* memory) {
  const Int8Weight w = sizes_of(layout);
  const Places at = places_of(layout, w);
  auto* sums = reinterpret_cast<std::int32_t*>(memory + at.sums);
  auto* scales = reinterpret_cast<float*>(memory + at.scales);
  auto* zero_points = reinterpret_cast<std::int32_t*>(memory + at.zero_points);
  const std::int64_t segment = source.transposed ? 1 : 4;
  parallel.for_each(static_cast<std::size_t>(ceil_div(w.tiles, segment)), [&](std::size_t index) {
    const std::int64_t first = static_cast<std::int64_t>(index) * segment;
    const std::int64_t end = std::min(w.tiles, first + segment);
    pack_codes(source, w, first, end, memory, sums);
    for (std::int64_t n = first * kTile; n < std::min(w.N, end * kTile); ++n) {
      scales[n] = source.scales == nullptr ? 1.0f : source.scales[source.scale_per_column ? n : 0];
      if (layout.zero_points) zero_points[n] = signed_zero_point(source, n);
    }
  });
}

void pack_segments(const Int8Source& source, const Int8Layout& layout, const Parallel& parallel, std::uint8_t* memory) {
  std::vector<std::uint8_t> columns;
  for (std::int64_t k = 0; k < layout.K; k += kSplitK) {
    const Int8Layout segment = segment_of(layout, k);
    Int8Source part = source;
    part.K = segment.K;
    if (source.transposed) {
      columns.resize(static_cast<std::size_t>(segment.K * source.N));
      for (std::int64_t n = 0; n < source.N; ++n) {
        std::copy_n(source.codes + n * source.K + k, segment.K, columns.data() + n * segment.K);
      }
      part.codes = columns.data();
    } else {
      part.codes += k * source.N;
    }
    pack_into(part, segment, parallel, memory);
    memory += packed_size(segment);
  }
}

}  // namespace

bool is_valid(const Int8Layout& layout) {
  constexpr std::int64_t kMaxElements = std::int64_t{1} << 40;  // beyond, sizes in bytes could overflow
  return layout.K >= 1 && layout.K <= kMaxElements && layout.N >= 1 && layout.N <= kMaxElements / layout.K;
}

std::size_t packed_size(const Int8Layout& layout) {
  if (!is_long(layout)) return places_of(layout, sizes_of(layout)).end;
  const std::int64_t last = (layout.K - 1) / kSplitK;
  return static_cast<std::size_t>(last) * packed_size(segment_of(layout, 0)) +
         packed_size(segment_of(layout, last * kSplitK));
}

Int8Weight view(const Int8Layout& layout, const std::uint8_t* memory) {
  Int8Weight w = sizes_of(layout);
  w.codes = reinterpret_cast<const std::int8_t*>(memory);
  if (w.is_long) return w;
  const Places at = places_of(layout, w);
  w.sums = reinterpret_cast<const std::int32_t*>(memory + at.sums);
  w.scales = reinterpret_cast<const float*>(memory + at.scales);
  if (layout.zero_points) w.zero_points = reinterpret_cast<const std::int32_t*>(memory + at.zero_points);
  return w;
}

Int8Weight segment_of(const Int8Weight& w, std::int64_t k) {
  const Int8Layout whole{w.K, w.N, w.has_zero_points};
  const std::size_t before = static_cast<std::size_t>(k / kSplitK) * packed_size(segment_of(whole, 0));
  return view(segment_of(whole, k), reinterpret_cast<const std::uint8_t*>(w.codes) + before);
}

PackedInt8 pack(const Int8Source& source, const Parallel& parallel) {
  const Int8Layout layout{source.K, source.N, has_zero_points(source)};
  const std::size_t size = packed_size(layout);
  auto allocated = make_aligned<std::uint8_t>(size);
  std::uint8_t* memory = allocated.get();
  if (is_long(layout)) {
    pack_segments(source, layout, parallel, memory);
  } else {
    pack_into(source, layout, parallel, memory);
  }
  return {layout, make_blob(std::move(allocated), size), view(layout, memory)};
}

}  // namespace onnxpress
