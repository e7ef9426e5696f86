// What block_sparse_matmul needs beyond int8_avx2.h; sparse_scalar.h says what each function means.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/int8_avx2.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

// For each mask of eight lanes, which of the words that are there a lane takes.
struct Places {
  std::uint8_t of[256][8];
};
constexpr Places make_places() {
  Places places{};
  for (int mask = 0; mask < 256; ++mask) {
    std::uint8_t count = 0;
    for (int lane = 0; lane < 8; ++lane) {
      places.of[mask][lane] = count;
      count = static_cast<std::uint8_t>(count + (mask >> lane & 1));
    }
  }
  return places;
}
constexpr Places kPlaces = make_places();

struct SparseAvx2 : Int8Avx2 {
  static constexpr std::uint8_t kFlip = 0;
  static constexpr std::int64_t kMaxTilesAtOnce = 1;
  static constexpr bool kHas8RowTiles = false;
  static constexpr std::int64_t kMaxFewRowsInt8 = 3, kMaxFewRowsFloat = 3;
  static constexpr int kSums = 4;

  // Bytes widened to 16 bits, the even and the odd ones apart, as in int8_avx2.h.
  struct Codes {
    __m256i low_even, low_odd, high_even, high_odd;
  };
  static Codes codes(const std::uint8_t* line) {
    const U8 v = Avx2::load(line);
    const __m256i even = _mm256_set1_epi16(255);
    return {_mm256_and_si256(v.low, even), _mm256_srli_epi16(v.low, 8), _mm256_and_si256(v.high, even),
            _mm256_srli_epi16(v.high, 8)};
  }
  struct FourWords {
    __m256i even, odd;
  };
  using Word = FourWords;
  static FourWords four_codes(const std::uint8_t* words) {
    const __m256i v = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(words)));
    return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
  }
  template <int Index>
  static Word code_word(FourWords words) {
    return {_mm256_shuffle_epi32(words.even, Index * 0x55), _mm256_shuffle_epi32(words.odd, Index * 0x55)};
  }
  template <int Index>
  static F32 float_word(const std::uint8_t* words) {
    return set1(reinterpret_cast<const float*>(words)[Index]);
  }
  static I32 dot_rows(I32 sum, Codes x, Word w) {
    return {plus_products(sum.low, x.low_even, w.even, x.low_odd, w.odd),
            plus_products(sum.high, x.high_even, w.even, x.high_odd, w.odd)};
  }
  static I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  using Int8Avx2::add;
  static I32 load_ints(const std::uint8_t* line) { return Avx2::load(line); }
  static F32 load_floats(const std::uint8_t* line) { return Avx2::load(reinterpret_cast<const float*>(line)); }
  using Int8Avx2::store;
  static void store(std::uint8_t* line, F32 a) { Avx2::store(reinterpret_cast<float*>(line), a); }

  template <int Count>
  static void gather(const std::uint8_t* const (&from)[4], std::uint8_t* to) {
    static_assert(Count == 1);
    const auto k = [&](int j) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[j])); };
    const auto put = [&](int i, __m128i v) { _mm_store_si128(reinterpret_cast<__m128i*>(to + 16 * i), v); };
    const __m128i low01 = _mm_unpacklo_epi8(k(0), k(1)), high01 = _mm_unpackhi_epi8(k(0), k(1));
    const __m128i low23 = _mm_unpacklo_epi8(k(2), k(3)), high23 = _mm_unpackhi_epi8(k(2), k(3));
    put(0, _mm_unpacklo_epi16(low01, low23));
    put(1, _mm_unpackhi_epi16(low01, low23));
    put(2, _mm_unpacklo_epi16(high01, high23));
    put(3, _mm_unpackhi_epi16(high01, high23));
  }
  static void transpose_bytes(const std::uint8_t* line, std::uint8_t* to, std::int64_t to_step) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const auto part = [&](int i) {
      return _mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(line) + i), order);
    };
    const auto put = [&](int j, __m128i v) { _mm_store_si128(reinterpret_cast<__m128i*>(to + j * to_step), v); };
    const __m128i a = part(0), b = part(1), c = part(2), d = part(3);
    const __m128i low_ab = _mm_unpacklo_epi32(a, b), high_ab = _mm_unpackhi_epi32(a, b);
    const __m128i low_cd = _mm_unpacklo_epi32(c, d), high_cd = _mm_unpackhi_epi32(c, d);
    put(0, _mm_unpacklo_epi64(low_ab, low_cd));
    put(1, _mm_unpackhi_epi64(low_ab, low_cd));
    put(2, _mm_unpacklo_epi64(high_ab, high_cd));
    put(3, _mm_unpackhi_epi64(high_ab, high_cd));
  }

  static void transpose(const std::uint8_t* from, std::int64_t from_step, std::uint8_t* to, std::int64_t to_step) {
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        transpose_8(from + 8 * i * from_step + 32 * j, from_step, to + 8 * j * to_step + 32 * i, to_step);
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
  static I32 as_ints(F32 v) { return {_mm256_castps_si256(v.low), _mm256_castps_si256(v.high)}; }
  static F32 as_floats(I32 words) { return {_mm256_castsi256_ps(words.low), _mm256_castsi256_ps(words.high)}; }

  static I32 pack_codes(const F32 (&y)[4], const CodeFormat& format) {
    alignas(16) std::uint8_t codes[4][16];
    for (int j = 0; j < 4; ++j) store_codes(codes[j], y[j], format, 16);
    const auto row = [&](int j) { return _mm_load_si128(reinterpret_cast<const __m128i*>(codes[j])); };
    const __m128i low01 = _mm_unpacklo_epi8(row(0), row(1)), high01 = _mm_unpackhi_epi8(row(0), row(1));
    const __m128i low23 = _mm_unpacklo_epi8(row(2), row(3)), high23 = _mm_unpackhi_epi8(row(2), row(3));
    const auto both = [](__m128i low, __m128i high) { return _mm256_set_m128i(high, low); };
    return {both(_mm_unpacklo_epi16(low01, low23), _mm_unpackhi_epi16(low01, low23)),
            both(_mm_unpacklo_epi16(high01, high23), _mm_unpackhi_epi16(high01, high23))};
  }
  static void store_words(std::uint8_t* p, I32 words, std::int64_t count) {
    alignas(64) std::uint8_t line[64];
    store(line, words);
    std::memcpy(p, line, static_cast<std::size_t>(count));
  }

  static void round_line(const float* p, const CodeFormat& format, std::uint8_t* line) {
    for (int i = 0; i < 64; i += 16) store_codes(line + i, load(p + i), format, 16);
  }

  static Weights expand_codes(const std::uint8_t* words, unsigned mask) {
    alignas(64) std::uint8_t line[64];
    expand(words, mask, line);
    return weights(reinterpret_cast<const std::int8_t*>(line));
  }
  static F32 expand_floats(const std::uint8_t* words, unsigned mask) {
    alignas(64) std::uint8_t line[64];
    expand(words, mask, line);
    return load_floats(line);
  }

 private:
  static void transpose_8(const std::uint8_t* from, std::int64_t from_step, std::uint8_t* to, std::int64_t to_step) {
    __m256i a[8], b[8];
    unroll<8>(ONNXPRESS_EACH(i) {
      a[i.value] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i.value * from_step));
    });
    unroll<4>(ONNXPRESS_EACH(i) {
      b[2 * i.value] = _mm256_unpacklo_epi32(a[2 * i.value], a[2 * i.value + 1]);
      b[2 * i.value + 1] = _mm256_unpackhi_epi32(a[2 * i.value], a[2 * i.value + 1]);
    });
    unroll<2>(ONNXPRESS_EACH(q) {
      constexpr int k = 4 * q.value;
      a[k] = _mm256_unpacklo_epi64(b[k], b[k + 2]);
      a[k + 1] = _mm256_unpackhi_epi64(b[k], b[k + 2]);
      a[k + 2] = _mm256_unpacklo_epi64(b[k + 1], b[k + 3]);
      a[k + 3] = _mm256_unpackhi_epi64(b[k + 1], b[k + 3]);
    });
    unroll<4>(ONNXPRESS_EACH(c) {
      constexpr int k = c.value;
      const auto put = [&](int line, __m256i v) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + line * to_step), v);
      };
      put(k, _mm256_permute2x128_si256(a[k], a[4 + k], 0x20));
      put(4 + k, _mm256_permute2x128_si256(a[k], a[4 + k], 0x31));
    });
  }

  static void expand(const std::uint8_t* words, unsigned mask, std::uint8_t* line) {
    for (int half = 0; half < 2; ++half, mask >>= 8) {
      const unsigned lanes = mask & 255u;
      const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
      const __m256i keep = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bits), bits);
      const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[lanes]));
      const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
      const __m256i placed = _mm256_permutevar8x32_epi32(all, _mm256_cvtepu8_epi32(places));
      _mm256_store_si256(reinterpret_cast<__m256i*>(line + 32 * half), _mm256_and_si256(placed, keep));
      words += 4 * __builtin_popcount(lanes);
    }
  }
};

}  // namespace
}  // namespace onnxpress
