// From the ONNX layouts to the tiles that the kernels read, at the speed of the memory nearly: it is most of the time
// that it takes to load a model.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/bit_planes.h"
#include "kernels/half.h"
#include "kernels/matmul_nbits.h"

namespace onnxpress {
namespace {

constexpr int kGroups = 8;  // of 4 k in a span
constexpr std::uint32_t kEachByte = 0x01010101u;

std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

// Blocks of the packed form divide those of the source: short enough that activations, which are rounded block by
// block, keep outliers to themselves, and that sums of int32 cannot overflow.
std::int64_t packed_block_size(const NBitsSource& source) {
  const std::int64_t own = source.block_size >= source.K ? round_up(source.K, kSpan) : source.block_size;
  for (std::int64_t size = 256; size >= kSpan; size -= kSpan) {
    if (own % size == 0) return size;
  }
  return kTile;
}

// A word a column. Compilers split it into the vectors of the machine, which they do not do to loops over its words.
using Words = std::uint32_t __attribute__((vector_size(4 * kTile)));

// A span of a tile, one code a byte: group g has the codes of k = 4 g to 4 g + 3, the first in the lowest byte of a
// word.
struct Span {
  Words groups[kGroups];
};

// Four fields of Width bits side by side in the low bits of each word, to one a byte.
template <int Width>
void spread(Words& words) {
  constexpr std::uint32_t kField = (1u << Width) - 1;
  constexpr std::uint32_t kPair = (1u << (2 * Width % 32)) - 1;
  if constexpr (Width < 8) {
    words &= (1u << (4 * Width % 32)) - 1;
    words = (words | words << (16 - 2 * Width)) & (kPair | kPair << 16);
    words = (words | words << (8 - Width)) & kField * kEachByte;
  }
}

// One bit plane of a span: its bytes of the first 16 k, and of the others, in the first column. `left` codes are left.
template <int Width>
void add_plane(const std::uint8_t* first, const std::uint8_t* second, std::int64_t column_bytes, std::int64_t left,
               int shift, Span& span) {
  constexpr std::size_t kHalf = 2 * Width;
  const auto bytes = [](std::int64_t codes) {
    return static_cast<std::size_t>(plane_bytes(std::clamp<std::int64_t>(codes, 0, kTile), Width));
  };
  Words words[Width];
  for (int c = 0; c < kTile; ++c, first += column_bytes, second += column_bytes) {
    std::uint32_t column[Width];
    auto* to = reinterpret_cast<std::uint8_t*>(column);
    if (left >= kSpan) {
      std::memcpy(to, first, kHalf);
      std::memcpy(to + kHalf, second, kHalf);
    } else {
      std::memset(to, 0, sizeof column);
      std::memcpy(to, first, bytes(left));
      std::memcpy(to + kHalf, second, bytes(left - kTile));
    }
    for (int i = 0; i < Width; ++i) words[i][c] = column[i];
  }
  for (int g = 0; g < kGroups; ++g) {
    Words fields = words[Width * g / 8] >> (4 * Width * g % 32);
    spread<Width>(fields);
    span.groups[g] = shift == 0 ? fields : span.groups[g] | fields << shift;
  }
}

// Columns one after the other; kColumns is a single block of K codes.
void read_columns(const NBitsSource& source, std::int64_t column, std::int64_t k, Span& span) {
  const bool flat = source.layout == NBitsSource::Layout::kColumns;
  const std::int64_t size = flat ? source.K : source.block_size;
  const std::int64_t bytes = packed_bytes(size, source.bits);
  const std::int64_t column_bytes = flat ? bytes : source.blocks() * bytes;
  const std::int64_t left = source.K - k;
  const std::uint8_t* plane = source.codes + column * column_bytes;
  for_each_plane(source.bits, [&](auto width, int shift) {
    constexpr int kWidth = decltype(width)::value;
    const auto half = [&](std::int64_t at) { return plane + at / size * bytes + at % size * kWidth / 8; };
    add_plane<kWidth>(half(k), half(left > kTile ? k + kTile : k), column_bytes, left, shift, span);
    plane += plane_bytes(size, kWidth);
  });
  // Nothing of what may stand behind the last code.
  for (std::int64_t i = std::max<std::int64_t>(left, 0); i < kSpan; ++i) span.groups[i / 4] &= ~(255u << (8 * (i % 4)));
}

// Rows one after the other, four at a time: a byte of each goes into the word of its column.
template <int Bits>
void read_rows(const NBitsSource& source, std::int64_t column, std::int64_t k, Span& span) {
  using Bytes = std::uint8_t __attribute__((vector_size(kTile)));
  using Pairs = std::uint16_t __attribute__((vector_size(2 * kTile)));
  for (int g = 0; g < kGroups; ++g) {
    Bytes rows[4] = {};
    std::uint8_t packed[4][kTile * Bits / 8] = {};
    for (std::int64_t i = 0; i < std::min<std::int64_t>(4, source.K - k - 4 * g); ++i) {
      std::memcpy(packed[i], source.codes + ((k + 4 * g + i) * source.N + column) * Bits / 8, sizeof packed[i]);
    }
    if constexpr (Bits == 4) {
      Pairs fours;
      std::memcpy(&fours, packed, sizeof fours);
      auto codes = __builtin_convertvector(fours, Words);
      spread<4>(codes);
      std::memcpy(rows, &codes, sizeof rows);
    } else {
      std::memcpy(rows, packed, sizeof rows);
    }
    Pairs pairs[4];
    for (int i = 0; i < 4; ++i) pairs[i] = __builtin_convertvector(rows[i], Pairs);
    for (int i : {0, 2}) pairs[i] |= pairs[i + 1] << 8;
    span.groups[g] = __builtin_convertvector(pairs[0], Words) | __builtin_convertvector(pairs[2], Words) << 16;
  }
}

// Code by code: for the last columns of a weight, and for 4 bits where columns begin in the middle of a byte.
void read_codes(const NBitsSource& source, std::int64_t column, std::int64_t k, Span& span) {
  span = {};
  for (std::int64_t i = 0; i < std::min(kSpan, source.K - k); ++i) {
    for (std::int64_t c = 0; c < std::min(kTile, source.N - column); ++c) {
      span.groups[i / 4][c] |= static_cast<std::uint32_t>(source.code(k + i, column + c)) << (8 * (i % 4));
    }
  }
}

// Codes of a tile as unsigned, zero beyond K and N.
void read_span(const NBitsSource& source, std::int64_t tile, std::int64_t k, Span& span) {
  const std::int64_t column = tile * kTile;
  const bool in_rows = source.layout == NBitsSource::Layout::kRows;
  const bool whole_bytes =
      source.layout == NBitsSource::Layout::kBlocks || source.bits == 8 || (in_rows ? source.N : source.K) % 2 == 0;
  if (source.N - column < kTile || !whole_bytes) return read_codes(source, column, k, span);
  if (!in_rows) {
    read_columns(source, column, k, span);
  } else if (source.bits == 4) {
    read_rows<4>(source, column, k, span);
  } else {
    read_rows<8>(source, column, k, span);
  }
  if (!source.is_signed) return;
  for (std::int64_t i = 0; i < std::min(kSpan, source.K - k); ++i) {
    span.groups[i / 4] ^= 1u << (source.bits - 1 + 8 * (i % 4));
  }
}

// Into bit planes of lines.
void write_span(const Span& span, int bits, std::uint8_t* out) {
  for_each_plane(bits, [&](auto width, int shift) {
    constexpr int kWidth = decltype(width)::value;
    constexpr std::uint32_t kFields = ((1u << kWidth) - 1) * kEachByte;
    Words lines[kWidth] = {};
    for (int g = 0; g < kGroups; ++g) lines[g % kWidth] |= (span.groups[g] >> shift & kFields) << (g / kWidth * kWidth);
    std::memcpy(out, lines, sizeof lines);
    out += sizeof lines;
  });
}

// Tiles that are read together: rows give whole cache lines.
std::int64_t tiles_at_once(const NBitsSource& source) {
  return source.layout == NBitsSource::Layout::kRows ? 32 / source.bits : 1;
}

void pack_codes(const NBitsSource& source, const NBitsWeight& w, std::int64_t first, std::int64_t end,
                std::uint8_t* memory) {
  for (std::int64_t k = 0; k < w.padded_k; k += kSpan) {
    for (std::int64_t tile = first; tile < end; ++tile) {
      Span span;
      if (k < w.K) {
        read_span(source, tile, k, span);
      } else {
        span = {};
      }
      write_span(span, w.bits, memory + (tile * w.padded_k + k) * kTile / 8 * w.bits);
    }
  }
}

// value(block of the source, column) for every packed block and column of a tile.
template <class T, class Value>
void pack_numbers(const NBitsSource& source, const NBitsWeight& w, std::int64_t tile, T* out, const Value& value) {
  const std::int64_t first = tile * kTile, columns = std::min(kTile, w.N - first);
  out += tile * w.blocks * kTile;
  for (std::int64_t k = 0; k < w.K; k += w.block_size, out += kTile) {
    const std::int64_t block = k / source.block_size;
    for (std::int64_t c = 0; c < columns; ++c) out[c] = value(block, first + c);
  }
}

// The upper half of a float, exact where the lower half is zero.
std::uint16_t upper_half(float value) { return static_cast<std::uint16_t>(float_to_bits(value) >> 16); }

// The zero points are a weight of one row a block.
void pack_zero_points(const NBitsSource& source, const NBitsWeight& w, std::int64_t tile, std::uint8_t* out) {
  if (source.blocks() == 1) {
    return pack_numbers(source, w, tile, out, [&](auto... at) { return source.zero_point(at...); });
  }
  NBitsSource zeros = source;
  zeros.codes = source.zero_points;
  zeros.K = zeros.block_size = source.blocks();
  Span span;
  std::int64_t known = -1;
  out += tile * w.blocks * kTile;
  for (std::int64_t k = 0; k < w.K; k += w.block_size, out += kTile) {
    const std::int64_t block = k / source.block_size;
    if (block / kSpan != known) {
      known = block / kSpan;
      read_span(zeros, tile, known * kSpan, span);
    }
    const Words words = span.groups[block % kSpan / 4] >> (block % 4 * 8);
    for (int c = 0; c < kTile; ++c) out[c] = static_cast<std::uint8_t>(words[c]);
  }
}

bool is_bfloat16(float value) { return (float_to_bits(value) & 0xffffu) == 0; }

// At most 11 significant bits, within the range, and whole steps of 2^-24: those of 0.5 + magnitude, where it counts.
bool is_half(float value) {
  const std::uint32_t bits = float_to_bits(value);
  const float magnitude = bits_to_float(bits & 0x7fffffffu);
  return static_cast<int>((bits & 0x1fffu) == 0) & static_cast<int>(magnitude <= 65504.0f) &
         static_cast<int>((magnitude + 0.5f) - 0.5f == magnitude);
}

// Whether all scales are numbers of a shorter type; in segments, which compilers turn into vectors.
template <class Is>
bool all_scales(const NBitsSource& source, const Is& is) {
  const auto* scales = static_cast<const float*>(source.scales);
  const std::int64_t count = source.scale_index(source.blocks() - 1, source.N - 1) + 1;
  for (std::int64_t begin = 0; begin < count; begin += 1024) {
    int all = 1;
    for (std::int64_t i = begin; i < std::min(count, begin + 1024); ++i) all &= static_cast<int>(is(scales[i]));
    if (all == 0) return false;
  }
  return true;
}

// Scales keep the 16 bits that they have, or that they had before they were widened.
ScaleType packed_scale_type(const NBitsSource& source) {
  if (source.scale_type != ScaleType::kFloat32) return source.scale_type;
  if (all_scales(source, is_bfloat16)) return ScaleType::kBFloat16;
  return all_scales(source, is_half) ? ScaleType::kFloat16 : ScaleType::kFloat32;
}

// Where the parts of a packed weight lie in its memory.
struct Places {
  std::size_t scales, zero_points, end;
};

Places places_of(const NBitsLayout& layout, const NBitsWeight& w) {
  using ZeroPoints = NBitsLayout::ZeroPoints;
  const auto numbers = static_cast<std::size_t>(w.tiles * w.blocks * kTile);
  const std::size_t point = layout.zero_points == ZeroPoints::kNone    ? 0
                            : layout.zero_points == ZeroPoints::kBytes ? 1
                                                                       : sizeof(float);
  Places at{};
  at.scales = static_cast<std::size_t>(w.tiles * w.padded_k * kTile / 8) * static_cast<std::size_t>(w.bits);
  at.zero_points = at.scales + numbers * static_cast<std::size_t>(size_of(layout.scale_type));
  at.end = at.zero_points + numbers * point;
  return at;
}

NBitsWeight sizes_of(const NBitsLayout& layout) {
  NBitsWeight w;
  w.K = layout.K;
  w.N = layout.N;
  w.bits = layout.bits;
  w.kind = layout.kind;
  w.block_size = layout.block_size;
  w.tiles = round_up(w.N, kTile) / kTile;
  w.padded_k = round_up(round_up(w.K, w.block_size), kSpan);
  w.blocks = w.padded_k / w.block_size;
  return w;
}

NBitsLayout layout_of(const NBitsSource& source) {
  NBitsLayout layout;
  layout.K = source.K;
  layout.N = source.N;
  layout.block_size = packed_block_size(source);
  layout.bits = source.bits;
  layout.kind = source.kind;
  layout.scale_type = packed_scale_type(source);
  if (source.float_zero_points != nullptr) {
    layout.zero_points = NBitsLayout::ZeroPoints::kFloats;
  } else if (!source.symmetric()) {
    layout.zero_points = NBitsLayout::ZeroPoints::kBytes;
  }
  return layout;
}

void pack_scales(const NBitsSource& source, const NBitsWeight& w, ScaleType type, std::int64_t tile, void* out) {
  const auto index = [&](std::int64_t block, std::int64_t n) { return source.scale_index(block, n); };
  const auto* floats = static_cast<const float*>(source.scales);
  const auto* shorts = static_cast<const std::uint16_t*>(source.scales);
  const auto* bytes = static_cast<const std::uint8_t*>(source.scales);
  auto* short_out = static_cast<std::uint16_t*>(out);
  if (type == ScaleType::kFloat32) {
    pack_numbers(source, w, tile, static_cast<float*>(out), [&](auto... at) { return floats[index(at...)]; });
  } else if (type == ScaleType::kExponent) {
    pack_numbers(source, w, tile, static_cast<std::uint8_t*>(out), [&](auto... at) { return bytes[index(at...)]; });
  } else if (source.scale_type != ScaleType::kFloat32) {
    pack_numbers(source, w, tile, short_out, [&](auto... at) { return shorts[index(at...)]; });
  } else if (type == ScaleType::kFloat16) {
    pack_numbers(source, w, tile, short_out, [&](auto... at) { return float_to_half(floats[index(at...)]); });
  } else {
    pack_numbers(source, w, tile, short_out, [&](auto... at) { return upper_half(floats[index(at...)]); });
  }
}

}  // namespace

bool is_valid(const NBitsLayout& layout) {
  constexpr std::int64_t kMaxElements = std::int64_t{1} << 40;  // beyond, sizes in bytes could overflow
  const std::int64_t block_size = layout.block_size;
  const bool is_integer = layout.kind == CodeKind::kInteger;
  const bool fits =
      is_integer ? layout.scale_type != ScaleType::kExponent
                 : layout.bits == minifloat(layout.kind).bits() && layout.zero_points == NBitsLayout::ZeroPoints::kNone;
  return fits && layout.bits >= 2 && layout.bits <= 8 && layout.K >= 1 && layout.K <= kMaxElements && layout.N >= 1 &&
         layout.N <= kMaxElements / layout.K &&
         (block_size == kTile || (block_size >= kSpan && block_size <= 256 && block_size % kSpan == 0)) &&
         block_size <= round_up(layout.K, kSpan);
}

std::size_t packed_size(const NBitsLayout& layout) { return places_of(layout, sizes_of(layout)).end; }

NBitsWeight view(const NBitsLayout& layout, const std::uint8_t* memory) {
  NBitsWeight w = sizes_of(layout);
  const Places at = places_of(layout, w);
  w.codes = memory;
  if (layout.scale_type == ScaleType::kFloat32) {
    w.scales = reinterpret_cast<const float*>(memory + at.scales);
  } else if (layout.scale_type == ScaleType::kExponent) {
    w.exponents = memory + at.scales;
  } else {
    const auto* scales = reinterpret_cast<const std::uint16_t*>(memory + at.scales);
    (layout.scale_type == ScaleType::kFloat16 ? w.half_scales : w.bfloat16_scales) = scales;
  }
  if (layout.zero_points == NBitsLayout::ZeroPoints::kBytes) w.zero_points = memory + at.zero_points;
  if (layout.zero_points == NBitsLayout::ZeroPoints::kFloats) {
    w.float_zero_points = reinterpret_cast<const float*>(memory + at.zero_points);
  }
  return w;
}

PackedWeight pack(const NBitsSource& source, const Parallel& parallel) {
  const NBitsLayout layout = layout_of(source);
  const NBitsWeight w = sizes_of(layout);
  const Places at = places_of(layout, w);
  auto allocated = make_aligned<std::uint8_t>(at.end);
  std::uint8_t* memory = allocated.get();
  const std::int64_t segment = tiles_at_once(source);
  const std::int64_t segments = round_up(w.tiles, segment) / segment;
  parallel.for_each(static_cast<std::size_t>(segments), [&](std::size_t index) {
    const std::int64_t first = static_cast<std::int64_t>(index) * segment;
    const std::int64_t end = std::min(w.tiles, first + segment);
    pack_codes(source, w, first, end, memory);
    for (std::int64_t tile = first; tile < end; ++tile) {
      pack_scales(source, w, layout.scale_type, tile, memory + at.scales);
      if (source.zero_points != nullptr) pack_zero_points(source, w, tile, memory + at.zero_points);
      if (layout.zero_points == NBitsLayout::ZeroPoints::kFloats) {
        pack_numbers(source, w, tile, reinterpret_cast<float*>(memory + at.zero_points),
                     [&](auto... at) { return source.float_zero_point(at...); });
      }
    }
  });
  return {layout, make_blob(std::move(allocated), at.end), view(layout, memory)};
}

}  // namespace onnxpress
