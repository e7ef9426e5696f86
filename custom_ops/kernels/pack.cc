// From the ONNX layout, a row of blocks an output channel, to the tiles that the kernels read.
#include <vector>

#include "kernels/bit_planes.h"
#include "kernels/half.h"
#include "kernels/matmul_nbits.h"

namespace onnxpress {
namespace {

std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

// Where the parts of a packed weight lie in its memory.
struct Layout {
  std::size_t codes, scales, zero_points, float_zero_points, end;
};

Layout layout_of(const NBitsSource& source, const NBitsWeight& w) {
  const auto numbers = static_cast<std::size_t>(w.tiles * w.blocks * kTile);
  const std::size_t scale_bytes = source.scale_type == ScaleType::kFloat16 ? 2 : 4;
  const auto codes = static_cast<std::size_t>(w.tiles * w.padded_k * kTile / 8) * static_cast<std::size_t>(w.bits);
  Layout at{};
  at.scales = codes;
  at.zero_points = at.scales + numbers * scale_bytes;
  at.float_zero_points = at.zero_points + (source.zero_points != nullptr ? numbers : 0);
  at.end = at.float_zero_points + (source.float_zero_points != nullptr ? numbers * sizeof(float) : 0);
  return at;
}

// The codes of span `span` of one tile, [column][32], into bit planes of lines.
void pack_span(const std::uint8_t* codes, int bits, std::uint8_t* out) {
  for_each_plane(bits, [&](int width, int shift) {
    const int mask = (1 << width) - 1;
    for (int k = 0; k < kSpan; ++k) {
      const int group = k / 4;
      std::uint8_t* line = out + 64 * (group % width) + k % 4;
      const int bit = group / width * width;
      for (int column = 0; column < kTile; ++column) {
        const int field = codes[column * kSpan + k] >> shift & mask;
        line[4 * column] = static_cast<std::uint8_t>(line[4 * column] | field << bit);
      }
    }
    out += 64 * width;
  });
}

void pack_tile(const NBitsSource& source, const NBitsWeight& w, const Layout& at, std::uint8_t* memory,
               std::int64_t tile, std::uint8_t* scratch) {
  const std::int64_t blocks = source.blocks();
  const std::int64_t blob = source.block_size * source.bits / 8;
  const std::int64_t zero_bytes = packed_bytes(blocks, source.bits);
  std::uint8_t* codes = scratch;                     // [padded_k] of one column
  std::uint8_t* lanes = scratch + w.padded_k;        // [padded_k / 32][16][32]
  std::uint8_t* zeros = lanes + w.padded_k * kTile;  // [blocks] of one column
  std::memset(scratch, 0, static_cast<std::size_t>(w.padded_k * (kTile + 1)));
  for (std::int64_t column = 0; column < kTile; ++column) {
    const std::int64_t n = tile * kTile + column;
    if (n >= source.N) break;
    for (std::int64_t block = 0; block < blocks; ++block) {
      unpack_planes(source.codes + (n * blocks + block) * blob, source.block_size, source.bits,
                    codes + block * source.block_size);
    }
    for (std::int64_t k = 0; k < source.K; k += kSpan) {
      std::memcpy(lanes + k * kTile + column * kSpan, codes + k,
                  static_cast<std::size_t>(source.K - k < kSpan ? source.K - k : kSpan));
    }
    if (source.zero_points != nullptr) unpack_planes(source.zero_points + n * zero_bytes, blocks, source.bits, zeros);
    for (std::int64_t block = 0; block < blocks; ++block) {
      const auto to = static_cast<std::size_t>((tile * w.blocks + block) * kTile + column);
      const std::int64_t from = n * blocks + block;
      if (source.scale_type == ScaleType::kFloat16) {
        reinterpret_cast<std::uint16_t*>(memory + at.scales)[to] =
            static_cast<const std::uint16_t*>(source.scales)[from];
      } else {
        reinterpret_cast<float*>(memory + at.scales)[to] = scale_at(source, source.scales, from);
      }
      if (source.zero_points != nullptr) memory[at.zero_points + to] = zeros[block];
      if (source.float_zero_points != nullptr) {
        reinterpret_cast<float*>(memory + at.float_zero_points)[to] = scale_at(source, source.float_zero_points, from);
      }
    }
  }
  std::uint8_t* out = memory + tile * w.padded_k * kTile / 8 * w.bits;
  for (std::int64_t k = 0; k < w.padded_k; k += kSpan, out += 64 * w.bits) pack_span(lanes + k * kTile, w.bits, out);
}

}  // namespace

float scale_at(const NBitsSource& source, const void* values, std::int64_t index) {
  switch (source.scale_type) {
    case ScaleType::kFloat16:
      return half_to_float(static_cast<const std::uint16_t*>(values)[index]);
    case ScaleType::kBFloat16:
      return bfloat16_to_float(static_cast<const std::uint16_t*>(values)[index]);
    default:
      return static_cast<const float*>(values)[index];
  }
}

PackedWeight pack(const NBitsSource& source, const Parallel& parallel) {
  PackedWeight packed;
  NBitsWeight& w = packed.view;
  w.K = source.K;
  w.N = source.N;
  w.bits = source.bits;
  w.block_size = source.block_size;
  w.tiles = round_up(w.N, kTile) / kTile;
  w.padded_k = round_up(round_up(w.K, w.block_size), kSpan);
  w.blocks = w.padded_k / w.block_size;

  const Layout at = layout_of(source, w);
  packed.memory = make_aligned<std::uint8_t>(at.end);
  packed.bytes = at.end;
  std::uint8_t* memory = packed.memory.get();
  // One scratch for each piece, allocated here: pieces must not throw.
  const std::int64_t pieces = w.tiles < 16 ? w.tiles : 16;
  const auto scratch_bytes = static_cast<std::size_t>(w.padded_k * (kTile + 1) + w.blocks);
  std::vector<std::uint8_t> scratch(scratch_bytes * static_cast<std::size_t>(pieces));
  parallel.for_each(static_cast<std::size_t>(pieces), [&](std::size_t piece) {
    for (auto tile = static_cast<std::int64_t>(piece); tile < w.tiles; tile += pieces) {
      pack_tile(source, w, at, memory, tile, scratch.data() + piece * scratch_bytes);
    }
  });

  w.codes = memory;
  if (source.scale_type == ScaleType::kFloat16) {
    w.half_scales = reinterpret_cast<const std::uint16_t*>(memory + at.scales);
  } else {
    w.scales = reinterpret_cast<const float*>(memory + at.scales);
  }
  if (source.zero_points != nullptr) w.zero_points = memory + at.zero_points;
  if (source.float_zero_points != nullptr) {
    w.float_zero_points = reinterpret_cast<const float*>(memory + at.float_zero_points);
  }
  return packed;
}

}  // namespace onnxpress
