// The kernels of matmul_int8, written once over a vector type (int8_<isa>.h) and compiled once an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/int8_dots.h"
#include "kernels/matmul_int8_kernels.h"
#include "kernels/unroll.h"

namespace onnxpress {
namespace {

inline std::uint8_t flip_of(const Int8Format& format) { return format.is_signed ? 128 : 0; }

inline std::uint8_t* row_of(const Int8Rows& rows, std::int64_t row) {
  return rows.codes + (rows.in_tiles ? row / 16 * 16 * rows.padded_k + row % 16 * kLine : row * rows.row_bytes);
}

template <class S>
void load_line(const float* values, std::int64_t count, const CodeFormat& format, std::uint8_t* line) {
  if (count < kLine) memset(line, 0, kLine);
  for (std::int64_t k = 0; k < kLine && k < count; k += kTile) {
    S::store_codes(line + k, S::load(values + k, count - k), format, count - k);
  }
}

template <class S>
void load_row(const Int8Problem& p, const Int8Rows& rows, std::int64_t row) {
  const Int8Weight& w = *p.weight;
  const CodeFormat format{p.input.scale, 1.0f / p.input.scale, rows.zero_point, 0};
  const std::int64_t step = rows.in_tiles ? 16 * kLine : kLine;
  std::uint8_t* line = row_of(rows, row);
  typename S::I32 sum = S::zero_int();
  for (std::int64_t k = 0; k < w.padded_k; k += kLine, line += step) {
    if (p.floats != nullptr) {
      load_line<S>(p.floats + row * w.K + k, w.K - k, format, line);
    } else {
      S::copy_line(p.codes + row * w.K + k, w.K - k, flip_of(p.input), line);
    }
    sum = S::add_line(sum, line);
  }
  // Unsigned: modulo 2^32, as all of the sums.
  const auto zero_points = static_cast<std::uint32_t>(w.K) * static_cast<std::uint32_t>(rows.zero_point);
  rows.sums[row] = static_cast<std::int32_t>(static_cast<std::uint32_t>(S::total(sum)) - zero_points);
}

// From the sums of products of the codes to the outputs of one tile.
template <class S>
class Finish {
 public:
  Finish(const Int8Problem& p, const Int8Rows& rows, std::int64_t tile)
      : N_(p.weight->N),
        left_(N_ - tile * kTile),
        row_sums_(p.weight->zero_points != nullptr ? rows.sums : nullptr),
        has_bias_(p.bias != nullptr),
        floats_(p.floats_out != nullptr ? p.floats_out + tile * kTile : nullptr),
        codes_(p.floats_out != nullptr ? nullptr : p.codes_out + tile * kTile),
        format_{p.output.scale, 1.0f / p.output.scale, p.output.zero_point + flip_of(p.output), flip_of(p.output)} {
    const Int8Weight& w = *p.weight;
    const std::int64_t column = tile * kTile;
    offset_ = S::mul(S::load(w.sums + column), S::set1(rows.zero_point));
    scale_ = S::mul(S::set1(p.input.scale), S::load(w.scales + column));
    if (row_sums_ != nullptr) zero_points_ = S::load(w.zero_points + column);
    if (has_bias_) bias_ = S::load(p.bias + column, left_);
  }

  __attribute__((always_inline)) void operator()(std::int64_t row, typename S::I32 sums) const {
    sums = S::sub(sums, offset_);
    if (row_sums_ != nullptr) sums = S::sub(sums, S::mul(zero_points_, S::set1(row_sums_[row])));
    auto y = S::mul(S::to_float(sums), scale_);
    if (has_bias_) y = S::add(y, bias_);
    if (floats_ != nullptr) {
      S::store(floats_ + row * N_, y, left_);
    } else {
      S::store_codes(codes_ + row * N_, y, format_, left_);
    }
  }

 private:
  const std::int64_t N_, left_;
  const std::int32_t* const row_sums_;
  const bool has_bias_;
  float* const floats_;
  std::uint8_t* const codes_;
  const CodeFormat format_;
  typename S::I32 offset_{}, zero_points_{};
  typename S::F32 scale_{}, bias_{};
};

// A few rows times a few tiles.
template <class S, int Rows, int Tiles>
void multiply_block(const Int8Problem& p, const Int8Rows& rows, std::int64_t row, std::int64_t tile) {
  const Int8Weight& w = *p.weight;
  const std::int8_t* codes = w.codes + tile * w.padded_k * kTile;
  dot_block<S, Rows, Tiles>(row_of(rows, row), rows.row_bytes, codes, w.padded_k, w.sums + tile * kTile,
                            [&](const auto& sums) __attribute__((always_inline)) {
                              unroll<Tiles>(ONNXPRESS_EACH(t) {
                                const Finish<S> finish(p, rows, tile + t.value);
                                unroll<Rows>(ONNXPRESS_EACH(r) { finish(row + r.value, sums[r.value][t.value]); });
                              });
                            });
}

// The tiles stay in L2 from one group of rows to the next.
template <class S>
void multiply(const Int8Problem& p, const Int8Rows& rows, std::int64_t first_tile, std::int64_t tiles,
              std::int64_t begin, std::int64_t rows_end) {
  const std::int64_t end = first_tile + tiles;
  for_each_group_of_rows<S::kInt8Rows>(begin, rows_end, [&](auto rows_at_once, std::int64_t row) {
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
  return {S::kName, S::kInt8Dots, 0, 1 << 18, 1, false, load_row<S>, multiply<S>, range<S>};
}

}  // namespace
}  // namespace onnxpress
