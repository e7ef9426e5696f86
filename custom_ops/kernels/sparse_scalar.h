// What block_sparse_matmul needs beyond int8_scalar.h: what a vector type must offer to it.
//
// A line is 64 bytes: 16 words, one for each of 16 rows of A, or one for each of 16 outputs.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/int8_scalar.h"

namespace onnxpress {
namespace {

struct SparseScalar : Int8Scalar {
  static constexpr std::uint8_t kFlip = 0;            // of codes of rows, as in SparseRows
  static constexpr std::int64_t kMaxTilesAtOnce = 1;  // lines of rows that a strip of 4 outputs multiplies at once
  static constexpr bool kHas8RowTiles = false;        // as in sparse_avx512vnni.h
  static constexpr std::int64_t kMaxFewRowsInt8 = 3, kMaxFewRowsFloat = 3;  // rows up to which lanes are outputs
  static constexpr int kSums = 4;                                           // that hide the latency of the products

  // The words of 16 rows: uint8 codes, and what the product with one weight of each kind needs.
  using Codes = const std::uint8_t*;
  static Codes codes(const std::uint8_t* line) { return line; }
  // Words of four weights, of which `Index` is taken for all lanes.
  using FourWords = const std::uint8_t*;
  static FourWords four_codes(const std::uint8_t* words) { return words; }
  using Word = const std::int8_t*;
  template <int Index>
  static Word code_word(FourWords words) {
    return reinterpret_cast<const std::int8_t*>(words) + 4 * Index;
  }
  template <int Index>
  static F32 float_word(const std::uint8_t* words) {
    float v;
    std::memcpy(&v, words + 4 * Index, sizeof v);
    return set1(v);
  }
  // The sum plus the exact products of four codes.
  static I32 dot_rows(const I32& sum, Codes x, Word w) {
    I32 r;
    for (int i = 0; i < 16; ++i) {
      std::int32_t products = 0;
      for (int j = 0; j < 4; ++j) products += x[4 * i + j] * w[j];
      r.v[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum.v[i]) + static_cast<std::uint32_t>(products));
    }
    return r;
  }
  static I32 add(const I32& a, const I32& b) {
    I32 r;
    for (int i = 0; i < 16; ++i) {
      r.v[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) + static_cast<std::uint32_t>(b.v[i]));
    }
    return r;
  }
  using Int8Scalar::add;
  static I32 load_ints(const std::uint8_t* line) {
    I32 r;
    std::memcpy(r.v, line, sizeof r.v);
    return r;
  }
  static F32 load_floats(const std::uint8_t* line) { return load(reinterpret_cast<const float*>(line)); }
  static void store(std::uint8_t* line, const I32& a) { std::memcpy(line, a.v, sizeof a.v); }
  static void store(std::uint8_t* line, const F32& a) { std::memcpy(line, a.v, sizeof a.v); }
  using Int8Scalar::store;

  // `Count` lines of any four k: byte j of each word is one of the 16 bytes at `from[j]`, and so for those a line
  // behind.
  template <int Count>
  static void gather(const std::uint8_t* const (&from)[4], std::uint8_t* to) {
    for (int t = 0; t < Count; ++t) {
      for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 4; ++j) to[64 * t + 4 * i + j] = from[j][16 * t + i];
      }
    }
  }
  // Byte j of word i becomes byte i of 16 that lie `to_step` j behind `to`.
  static void transpose_bytes(const std::uint8_t* line, std::uint8_t* to, std::int64_t to_step) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 4; ++j) to[to_step * j + i] = line[4 * i + j];
    }
  }
  // Word j of line i becomes word i of line j. `from` may lie anywhere.
  static void transpose(const std::uint8_t* from, std::int64_t from_step, std::uint8_t* to, std::int64_t to_step) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) std::memcpy(to + j * to_step + 4 * i, from + i * from_step + 4 * j, 4);
    }
  }
  // use(j, line j) for the lines load(0) to load(15), transposed.
  template <class Load, class Use>
  static void for_each_transposed(const Load& load, const Use& use) {
    std::uint8_t lines[16 * 64], transposed[16 * 64];
    for (int i = 0; i < 16; ++i) store(lines + 64 * i, load(i));
    transpose(lines, 64, transposed, 64);
    for (int i = 0; i < 16; ++i) use(i, load_ints(transposed + 64 * i));
  }
  static F32 as_floats(const I32& words) {
    F32 r;
    std::memcpy(r.v, words.v, sizeof r.v);
    return r;
  }
  // The codes of four numbers in each lane, the first in the lowest byte.
  static I32 pack_codes(const F32 (&y)[4], const CodeFormat& format) {
    std::uint8_t codes[4][16];
    for (int j = 0; j < 4; ++j) store_codes(codes[j], y[j], format, 16);
    I32 r;
    for (int i = 0; i < 16; ++i) {
      const std::uint8_t word[4] = {codes[0][i], codes[1][i], codes[2][i], codes[3][i]};
      std::memcpy(&r.v[i], word, 4);
    }
    return r;
  }
  // The first `count` bytes of a line, to anywhere.
  static void store_words(std::uint8_t* p, const I32& words, std::int64_t count) {
    std::memcpy(p, words.v, static_cast<std::size_t>(count));
  }
  static I32 as_ints(const F32& v) {
    I32 r;
    std::memcpy(r.v, v.v, sizeof r.v);
    return r;
  }
  // 64 numbers of at most 127 scales, as codes with the zero point 128.
  static void round_line(const float* p, const CodeFormat& format, std::uint8_t* line) {
    for (int i = 0; i < 64; i += 16) store_codes(line + i, load(p + i), format, 16);
  }
  // The next words of `words` in the lanes of the mask, zeros elsewhere. 64 bytes may be read.
  static void expand(const std::uint8_t* words, unsigned mask, std::uint8_t* line) {
    for (int i = 0; i < 16; ++i) {
      const bool present = (mask >> i & 1u) != 0;
      std::uint32_t word = 0;
      if (present) std::memcpy(&word, words, 4);
      std::memcpy(line + 4 * i, &word, 4);
      words += present ? 4 : 0;
    }
  }
  static Weights expand_codes(const std::uint8_t* words, unsigned mask) {
    Weights w;
    expand(words, mask, reinterpret_cast<std::uint8_t*>(w.v));
    return w;
  }
  static F32 expand_floats(const std::uint8_t* words, unsigned mask) {
    F32 r;
    expand(words, mask, reinterpret_cast<std::uint8_t*>(r.v));
    return r;
  }
};

}  // namespace
}  // namespace onnxpress
