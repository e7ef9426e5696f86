// The kernels of matmul_int8, written once over a vector type (int8_<isa>.h) and compiled once an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/matmul_int8_kernels.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

inline std::uint8_t flip_of(const Int8Format& format) { return format.is_signed ? 128 : 0; }

inline std::int32_t unsigned_zero_point(const Int8Format& format) { return format.zero_point + flip_of(format); }

template <class S>
void load_row(const Int8Problem& p, const Int8Rows& rows, std::int64_t row) {
  const Int8Weight& w = *p.weight;
  std::uint8_t* to = rows.codes + row * rows.stride;
  if (p.floats != nullptr) {
    const float* values = p.floats + row * w.K;
    const CodeFormat format{p.input.scale, rows.zero_point, 0};
    for (std::int64_t k = 0; k < w.K; k += kTile) {
      S::store_codes(to + k, S::load(values + k, w.K - k), format, w.K - k);
    }
  } else {
    S::copy_flipped(p.codes + row * w.K, w.K, flip_of(p.input), to);
  }
  memset(to + w.K, 0, static_cast<std::size_t>(w.padded_k - w.K));
  if (w.zero_points != nullptr) {
    // Unsigned: modulo 2^32, as all of the sums.
    const auto zero_points = static_cast<std::uint32_t>(w.K) * static_cast<std::uint32_t>(rows.zero_point);
    const auto codes = static_cast<std::uint32_t>(S::sum_bytes(to, w.padded_k));
    rows.sums[row] = static_cast<std::int32_t>(codes - zero_points);
  }
}

// From the sums of products of the codes to the outputs of one tile.
template <class S>
class Finish {
 public:
  Finish(const Int8Problem& p, const Int8Rows& rows, std::int64_t tile)
      : p_(p), rows_(rows), column_(tile * kTile), left_(p.weight->N - column_) {
    const Int8Weight& w = *p.weight;
    weight_sums_ = S::load(w.sums + column_);
    if (w.zero_points != nullptr) zero_points_ = S::load(w.zero_points + column_);
    scale_ = S::mul(S::set1(p.input.scale), S::load(w.scales + column_));
    if (p.bias != nullptr) bias_ = S::load(p.bias + column_, left_);
  }

  __attribute__((always_inline)) void operator()(std::int64_t row, typename S::I32 sums) const {
    const Int8Weight& w = *p_.weight;
    sums = S::subtract_product(sums, weight_sums_, S::set1(rows_.zero_point));
    if (w.zero_points != nullptr) sums = S::subtract_product(sums, zero_points_, S::set1(rows_.sums[row]));
    auto y = S::mul(S::to_float(sums), scale_);
    if (p_.bias != nullptr) y = S::add(y, bias_);
    const std::int64_t at = row * w.N + column_;
    if (p_.floats_out != nullptr) {
      S::store(p_.floats_out + at, y, left_);
    } else {
      const CodeFormat format{p_.output.scale, unsigned_zero_point(p_.output), flip_of(p_.output)};
      S::store_codes(p_.codes_out + at, y, format, left_);
    }
  }

 private:
  const Int8Problem& p_;
  const Int8Rows& rows_;
  const std::int64_t column_, left_;
  typename S::I32 weight_sums_{}, zero_points_{};
  typename S::F32 scale_{}, bias_{};
};

// A few rows times a few tiles, the sums in registers over all of K.
template <class S, int Rows, int Tiles>
void multiply_block(const Int8Problem& p, const Int8Rows& rows, std::int64_t row, std::int64_t tile) {
  constexpr std::int64_t kLine = 4 * kTile;
  const Int8Weight& w = *p.weight;
  typename S::I32 sums[Rows][Tiles];
  unroll<Rows>(ONNXPRESS_EACH(r) { unroll<Tiles>(ONNXPRESS_EACH(t) { sums[r.value][t.value] = S::zero_int(); }); });
  const std::int8_t* codes = w.codes + tile * w.padded_k * kTile;
  const std::int64_t tile_bytes = w.padded_k * kTile;
  const std::uint8_t* x = rows.codes + row * rows.stride;
  for (std::int64_t k = 0; k < w.padded_k; k += 16) {
    unroll<4>(ONNXPRESS_EACH(g) {
      typename S::Weights line[Tiles];
      unroll<Tiles>(ONNXPRESS_EACH(t) { line[t.value] = S::weights(codes + t.value * tile_bytes + g.value * kLine); });
      unroll<Rows>(ONNXPRESS_EACH(r) {
        const auto four = S::activations(x + r.value * rows.stride + 4 * g.value);
        unroll<Tiles>(
            ONNXPRESS_EACH(t) { sums[r.value][t.value] = S::dot(sums[r.value][t.value], four, line[t.value]); });
      });
    });
    codes += 4 * kLine;
    x += 16;
  }
  unroll<Tiles>(ONNXPRESS_EACH(t) {
    const Finish<S> finish(p, rows, tile + t.value);
    unroll<Rows>(ONNXPRESS_EACH(r) { finish(row + r.value, sums[r.value][t.value]); });
  });
}

// The tiles stay in L2 from one group of rows to the next.
template <class S>
void multiply(const Int8Problem& p, const Int8Rows& rows, std::int64_t first_tile, std::int64_t tiles,
              std::int64_t begin, std::int64_t rows_end) {
  const std::int64_t end = first_tile + tiles;
  for_each_group_of_rows<S>(begin, rows_end, [&](auto rows_at_once, std::int64_t row) {
    constexpr int kRows = decltype(rows_at_once)::value;
    constexpr int kTiles = S::template int8_tiles<kRows>();
    std::int64_t tile = first_tile;
    for (; tile + kTiles <= end; tile += kTiles) multiply_block<S, kRows, kTiles>(p, rows, row, tile);
    for (; tile < end; ++tile) multiply_block<S, kRows, 1>(p, rows, row, tile);
  });
}

template <class S>
Range range(const float* values, std::int64_t count) {
  Range range{0, 0};
  S::extend(values, count, range.low, range.high);
  return range;
}

template <class S>
constexpr Int8Kernels make_int8_kernels() {
  return {S::kName, 1, load_row<S>, multiply<S>, range<S>};
}

}  // namespace
}  // namespace onnxpress
