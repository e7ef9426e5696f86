// What block_sparse_matmul needs beyond int8_neon.h; sparse_scalar.h says what each function means.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/int8_neon.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

// For each mask of four lanes, which bytes of the words that are there a lane takes; none, which gives 0, is 255.
struct NeonPlaces {
  std::uint8_t of[16][16];
};
constexpr NeonPlaces make_places() {
  NeonPlaces places{};
  for (int mask = 0; mask < 16; ++mask) {
    int byte = 0;
    for (int i = 0; i < 16; ++i) {
      const bool present = (mask >> i / 4 & 1) != 0;
      places.of[mask][i] = static_cast<std::uint8_t>(present ? byte : 255);
      byte += present ? 1 : 0;
    }
  }
  return places;
}
constexpr NeonPlaces kPlaces = make_places();

struct SparseNeon : Int8Neon {
  static constexpr std::uint8_t kFlip = 128;  // both sides of the dot product are signed
  static constexpr std::int64_t kMaxTilesAtOnce = 1;
  static constexpr bool kHas8RowTiles = false;
  static constexpr std::int64_t kMaxFewRowsInt8 = 3, kMaxFewRowsFloat = 3;
  static constexpr int kSums = 4;

  using Codes = Weights;
  static Codes codes(const std::uint8_t* line) { return weights(reinterpret_cast<const std::int8_t*>(line)); }
  using FourWords = int8x16_t;
  static FourWords four_codes(const std::uint8_t* words) { return vreinterpretq_s8_u8(vld1q_u8(words)); }
  template <int Index>
  struct Word {
    FourWords words;
  };
  template <int Index>
  static Word<Index> code_word(FourWords words) {
    return {words};
  }
  template <int Index>
  static F32 float_word(const std::uint8_t* words) {
    return set1(reinterpret_cast<const float*>(words)[Index]);
  }
  template <int Index>
  static I32 dot_rows(const I32& sum, const Codes& x, Word<Index> w) {
    return map<I32>([&](int i) { return vdotq_laneq_s32(sum.v[i], x.v[i], w.words, Index); });
  }
  static I32 dot(const I32& sum, Activations x, const Weights& w) {
    return map<I32>([&](int i) { return vdotq_s32(sum.v[i], w.v[i], vreinterpretq_s8_u8(x)); });
  }
  static I32 load_ints(const std::uint8_t* line) {
    return map<I32>([=](int i) { return vreinterpretq_s32_u8(vld1q_u8(line + 16 * i)); });
  }
  static F32 load_floats(const std::uint8_t* line) { return as_floats(load_ints(line)); }
  using Int8Neon::store;
  static void store(std::uint8_t* line, const I32& a) {
    for (int i = 0; i < 4; ++i) vst1q_u8(line + 16 * i, vreinterpretq_u8_s32(a.v[i]));
  }
  static void store(std::uint8_t* line, const F32& a) { store(line, as_ints(a)); }

  template <int Count>
  static void gather(const std::uint8_t* const (&from)[4], std::uint8_t* to) {
    static_assert(Count == 1);
    vst4q_u8(to, {{vld1q_u8(from[0]), vld1q_u8(from[1]), vld1q_u8(from[2]), vld1q_u8(from[3])}});
  }
  static void transpose_bytes(const std::uint8_t* line, std::uint8_t* to, std::int64_t to_step) {
    const uint8x16x4_t bytes = vld4q_u8(line);
    for (int j = 0; j < 4; ++j) vst1q_u8(to + j * to_step, bytes.val[j]);
  }
  static void transpose(const std::uint8_t* from, std::int64_t from_step, std::uint8_t* to, std::int64_t to_step) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        transpose_4(from + 4 * i * from_step + 16 * j, from_step, to + 4 * j * to_step + 16 * i, to_step);
      }
    }
  }
  template <class Load, class Use>
  static void for_each_transposed(const Load& load, const Use& use) {
    alignas(64) std::uint8_t lines[16 * 64], transposed[16 * 64];
    for (int i = 0; i < 16; ++i) store(lines + 64 * i, load(i));
    transpose(lines, 64, transposed, 64);
    for (int i = 0; i < 16; ++i) use(i, load_ints(transposed + 64 * i));
  }
  static I32 as_ints(const F32& v) {
    return map<I32>([&](int i) { return vreinterpretq_s32_f32(v.v[i]); });
  }
  static F32 as_floats(const I32& words) {
    return map<F32>([&](int i) { return vreinterpretq_f32_s32(words.v[i]); });
  }

  static I32 pack_codes(const F32 (&y)[4], const CodeFormat& format) {
    std::uint8_t codes[4][16], line[64];
    for (int j = 0; j < 4; ++j) store_codes(codes[j], y[j], format, 16);
    vst4q_u8(line, {{vld1q_u8(codes[0]), vld1q_u8(codes[1]), vld1q_u8(codes[2]), vld1q_u8(codes[3])}});
    return load_ints(line);
  }
  static void store_words(std::uint8_t* p, const I32& words, std::int64_t count) {
    std::uint8_t line[64];
    store(line, words);
    std::memcpy(p, line, static_cast<std::size_t>(count));
  }
  static void round_line(const float* p, const CodeFormat& format, std::uint8_t* line) {
    for (int i = 0; i < 64; i += 16) store_codes(line + i, load(p + i), format, 16);
  }

  static Weights expand_codes(const std::uint8_t* words, unsigned mask) {
    const I32 placed = expand(words, mask);
    return map<Weights>([&](int i) { return vreinterpretq_s8_s32(placed.v[i]); });
  }
  static F32 expand_floats(const std::uint8_t* words, unsigned mask) { return as_floats(expand(words, mask)); }

 private:
  static I32 expand(const std::uint8_t* words, unsigned mask) {
    return map<I32>([&](int i) {
      const unsigned lanes = mask >> 4 * i & 15u;
      const uint8x16_t placed = vqtbl1q_u8(vld1q_u8(words), vld1q_u8(kPlaces.of[lanes]));
      words += 4 * __builtin_popcount(lanes);
      return vreinterpretq_s32_u8(placed);
    });
  }
  static void transpose_4(const std::uint8_t* from, std::int64_t from_step, std::uint8_t* to, std::int64_t to_step) {
    const auto line = [=](int i) { return vreinterpretq_u32_u8(vld1q_u8(from + i * from_step)); };
    const auto put = [=](int j, uint64x2_t v) { vst1q_u8(to + j * to_step, vreinterpretq_u8_u64(v)); };
    const uint32x4_t a = line(0), b = line(1), c = line(2), d = line(3);
    const uint64x2_t even_ab = vreinterpretq_u64_u32(vtrn1q_u32(a, b)),
                     odd_ab = vreinterpretq_u64_u32(vtrn2q_u32(a, b));
    const uint64x2_t even_cd = vreinterpretq_u64_u32(vtrn1q_u32(c, d)),
                     odd_cd = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
    put(0, vtrn1q_u64(even_ab, even_cd));
    put(1, vtrn1q_u64(odd_ab, odd_cd));
    put(2, vtrn2q_u64(even_ab, even_cd));
    put(3, vtrn2q_u64(odd_ab, odd_cd));
  }
};

}  // namespace
}  // namespace onnxpress
