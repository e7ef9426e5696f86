// y = A * W + bias for a weight of 2 to 8 bits in blocks along K: the packed weight and the way in.
//
// Packed form, the same for every instruction set: columns in tiles of 16, k in spans of 32. A span of a tile takes
// 64 bytes a bit. Its eight groups of 4 k by 16 columns (byte 4 * column + k % 4) lie in bit planes: the plane of
// width w (8, 4, 2 or 1; a code of 3 bits is 2 + 1, 5 is 4 + 1, 6 is 4 + 2, 7 is 4 + 2 + 1) has w lines of 64
// bytes, and group g is in line g % w at bit g / w * w. One shift and one mask a plane turn a line into 64 codes
// that are in place for a 4-way dot product with a broadcast of 4 activations.
#pragma once

#include <cstdint>

#include "kernels/blob.h"
#include "kernels/cpu_isa.h"
#include "kernels/nbits_source.h"
#include "kernels/parallel.h"
#include "kernels/tile.h"

namespace onnxpress {

inline constexpr std::int64_t kSpan = 32;

// All that tells how the bytes of a packed weight are to be read.
struct NBitsLayout {
  enum class ZeroPoints { kNone, kBytes, kFloats };  // none: 2^(bits - 1) everywhere

  std::int64_t K = 0;
  std::int64_t N = 0;
  std::int64_t block_size = 0;  // 16, or a multiple of 32 up to 256
  int bits = 0;
  CodeKind kind = CodeKind::kInteger;
  ScaleType scale_type = ScaleType::kFloat32;
  ZeroPoints zero_points = ZeroPoints::kNone;
};

// A packed weight, as plain pointers: files compiled for one instruction set see no code of the standard library.
struct NBitsWeight {
  std::int64_t K = 0;
  std::int64_t N = 0;
  std::int64_t block_size = 0;
  std::int64_t tiles = 0;
  std::int64_t padded_k = 0;  // whole blocks and whole spans
  std::int64_t blocks = 0;    // of padded_k; scales of the added ones are 0
  int bits = 0;
  CodeKind kind = CodeKind::kInteger;
  const std::uint8_t* codes = nullptr;  // [tiles, padded_k / 32, 64 * bits]
  // At block 32, scales of float32 are a fifth of a 4-bit weight's traffic, of 16 bits a ninth.
  const float* scales = nullptr;                   // [tiles, blocks, 16], or
  const std::uint16_t* half_scales = nullptr;      // the same as float16, or
  const std::uint16_t* bfloat16_scales = nullptr;  // as bfloat16, or
  const std::uint8_t* exponents = nullptr;         // as 2^(code - 127)
  // Neither: 2^(bits - 1) everywhere, where codes are integers.
  const std::uint8_t* zero_points = nullptr;  // [tiles, blocks, 16], or
  const float* float_zero_points = nullptr;   // the same as float32
};

// Whether `pack` could have made it. Only then may the others be called.
bool is_valid(const NBitsLayout& layout);
std::size_t packed_size(const NBitsLayout& layout);
NBitsWeight view(const NBitsLayout& layout, const std::uint8_t* memory);

struct PackedWeight {
  NBitsLayout layout;
  Blob memory;
  NBitsWeight view;  // into the memory
};

// The weight at [k, n], slowly.
float value_at(const NBitsWeight& weight, std::int64_t k, std::int64_t n);

// Throws std::bad_alloc. Sizes must have been checked.
PackedWeight pack(const NBitsSource& source, const Parallel& parallel);

// What the activations are rounded to. Where nothing multiplies bfloat16, it is computed in float32; so are int8 ones
// where codes are no integers.
enum class Compute { kFloat32, kBFloat16, kInt8 };

enum class Activation { kNone, kRelu, kSilu, kGelu, kGeluTanh };

// x / sqrt(mean of x^2 of the row + epsilon) * scale
struct RmsNorm {
  const float* scale = nullptr;  // [K], or null for none
  float epsilon = 0;
};

// A gated linear unit: of which half of the columns the activation is. The other half multiplies it.
enum class Glu { kNone, kFirst, kSecond };

// Y = activation(norm(A) * W + bias) * gate + addend, or with a gated linear unit
// Y = activation(one half of norm(A) * W + bias) * the other half, [M, N / 2], without gate and addend.
struct NBitsProblem {
  const float* A = nullptr;  // [M, K]
  std::int64_t M = 0;
  const NBitsWeight* weight = nullptr;
  const float* bias = nullptr;  // [N] or null
  float* Y = nullptr;           // [M, N]
  Activation activation = Activation::kNone;
  const float* gate = nullptr;    // [M, N] or null
  const float* addend = nullptr;  // [M, N] or null
  RmsNorm norm{};
  Glu glu = Glu::kNone;
};

// Of an accuracy_level: 4 is int8, 3 bfloat16, anything else float32.
inline Compute compute_of(std::int64_t accuracy_level) {
  if (accuracy_level == 4) return Compute::kInt8;
  return accuracy_level == 3 ? Compute::kBFloat16 : Compute::kFloat32;
}

// Throws std::bad_alloc. Returns the name of the instruction set whose code ran.
const char* matmul_nbits(const NBitsProblem& problem, Compute compute, Isa isa, const Parallel& parallel);

// Whether its code for this is more than portable loops.
bool is_nbits_vectorized(Isa isa);

// float16 to float32 and back on whole arrays.
void convert(const std::uint16_t* halves, float* floats, std::int64_t count, Isa isa);
void convert(const float* floats, std::uint16_t* halves, std::int64_t count, Isa isa);

}  // namespace onnxpress
