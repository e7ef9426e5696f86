// y = (a - zero_a) * (W - zero_w) * scale_a * scale_w + bias for activations and weights of 8 bits; the sums are exact.
//
// In detail: the sum over k is an int32, its float32 is multiplied by the float32 scale_a * scale_w, and the bias is
// added with a rounding of its own, so that every instruction set gives the same bits. Where K is so long that an int32
// could overflow, there is a sum, and a product in float32, for each segment of kSplitK of K; the products are added
// one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/blob.h"
#include "kernels/cpu_isa.h"
#include "kernels/parallel.h"
#include "kernels/tile.h"

namespace onnxpress {

// As ONNX stores it.
struct Int8Source {
  std::int64_t K = 0, N = 0;
  const std::uint8_t* codes = nullptr;  // [K, N], or [N, K] if transposed
  bool transposed = false;
  bool is_signed = true;                      // codes and zero points are int8, else uint8
  const std::uint8_t* zero_points = nullptr;  // one for all or one a column; null: 0
  bool zero_point_per_column = false;
  const float* scales = nullptr;  // one for all or one a column; null: 1
  bool scale_per_column = false;
};

// All that tells how the bytes of a packed weight are to be read.
struct Int8Layout {
  std::int64_t K = 0, N = 0;
  bool zero_points = false;  // some zero point of the signed codes is not 0
};

inline constexpr std::int64_t kSplitK = 1 << 15;

// Packed; plain pointers. Columns in tiles of 16, k in groups of 4: lines of 64 bytes, as MatMulNBits has them for 8
// bits. A long weight is its segments, one packed behind the other.
struct Int8Weight {
  std::int64_t K = 0, N = 0, tiles = 0, padded_k = 0;  // padded_k: a multiple of 64
  const std::int8_t* codes = nullptr;                  // [tiles, padded_k / 4, 16, 4], as signed
  const std::int32_t* sums = nullptr;                  // [tiles * 16]: over k, of the codes
  const std::int32_t* zero_points = nullptr;           // [tiles * 16], of the signed codes; null where all are 0
  const float* scales = nullptr;                       // [tiles * 16]
  bool is_long = false;                                // `codes` is where the segments begin, the other arrays are null
  bool has_zero_points = false;
};

// Whether there can be such a weight: what reads a layout from a file asks.
bool is_valid(const Int8Layout& layout);
std::size_t packed_size(const Int8Layout& layout);
Int8Weight view(const Int8Layout& layout, const std::uint8_t* memory);
// Of a long weight, the segment that begins at k, a multiple of kSplitK.
Int8Weight segment_of(const Int8Weight& weight, std::int64_t k);

struct PackedInt8 {
  Int8Layout layout;
  Blob memory;
  Int8Weight view;  // into the memory
};

// Throws std::bad_alloc. Sizes must have been checked.
PackedInt8 pack(const Int8Source& source, const Parallel& parallel);

// 8-bit numbers: (code - zero_point) * scale
struct Int8Format {
  float scale = 1;
  std::int32_t zero_point = 0;
  bool is_signed = false;
};

struct Int8Problem {
  const float* floats = nullptr;        // [M, K], rounded to `input` first, or
  const std::uint8_t* codes = nullptr;  // [M, K], of `input`
  Int8Format input;
  std::int64_t M = 0;
  const Int8Weight* weight = nullptr;
  const float* bias = nullptr;        // [N] or null
  float* floats_out = nullptr;        // [M, N], or
  std::uint8_t* codes_out = nullptr;  // [M, N], rounded to `output`
  Int8Format output;
};

// Throws std::bad_alloc. Returns the name of the instruction set whose code ran.
const char* matmul_int8(const Int8Problem& problem, Isa isa, const Parallel& parallel);

// How exact sums of products of bytes come about: in portable loops, in vectors of wider numbers, or by one
// instruction, with which products are not known to be faster than ONNX Runtime's, or are.
enum class Int8Dots { kPortable, kWidened, kUnproven, kNative };
Int8Dots int8_dots(Isa isa);

// What DynamicQuantizeLinear chooses for these values: uint8 over [min(0, min), max(0, max)].
Int8Format dynamic_format(const float* values, std::int64_t count, Isa isa, const Parallel& parallel);

}  // namespace onnxpress
