// From rows of A to the words that a block-sparse product reads.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/block_sparse_kernels.h"
#include "kernels/matmul_int8_impl.h"

namespace onnxpress {
namespace {

constexpr float kMinScale = 1.17549435e-38f;  // below, 1 / scale could overflow, and all codes are zero

// The format of a row, and its scale.
template <class S>
CodeFormat format_of_row(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t row) {
  if (p.is_static) {
    rows.scales[row] = p.input.scale;
    return {p.input.scale, 1.0f / p.input.scale, rows.zero_point, S::kFlip};
  }
  const float peak = S::max_abs(p.floats + row * p.weight->K, p.weight->K);
  const bool is_finite = peak - peak == 0;
  const float scale = is_finite ? peak / 127.0f : peak - peak;  // NaN
  rows.scales[row] = scale;
  if (!(scale >= kMinScale)) return {1.0f, 0.0f, rows.zero_point, S::kFlip};
  return {scale, 1.0f / scale, rows.zero_point, S::kFlip};
}

// Sixteen words of a row from one on; zeros behind the end.
template <class S>
void load_words(const BlockSparseProblem& p, const CodeFormat& format, std::int64_t row, std::int64_t word,
                std::uint8_t* line) {
  const std::int64_t K = p.weight->K;
  if (p.weight->is_float) {
    S::store(line, S::load(p.floats + row * K + word, K - word));
  } else if (p.floats != nullptr && !p.is_static && 4 * word + kLine <= K) {
    S::round_line(p.floats + row * K + 4 * word, format, line);
  } else if (p.floats != nullptr) {
    load_line<S>(p.floats + row * K + 4 * word, K - 4 * word, format, line);
  } else {
    S::copy_line(p.codes + row * K + 4 * word, K - 4 * word, S::kFlip, line);
  }
}

template <class S>
CodeFormat format_of(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t row) {
  return p.weight->is_float ? CodeFormat{} : format_of_row<S>(p, rows, row);
}

template <class S>
void sparse_load_row(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t row) {
  const CodeFormat format = format_of<S>(p, rows, row);
  std::uint8_t* to = rows.words + row * rows.row_bytes;
  for (std::int64_t word = 0; 4 * word < rows.row_bytes; word += 16) load_words<S>(p, format, row, word, to + 4 * word);
}

// From 16 rows of 16 words, `from_step` bytes apart, to the places of group `group` and those behind it in a tile.
template <class S>
void transpose_words(const BlockSparseProblem& p, const SparseRows& rows, const std::uint8_t* from,
                     std::int64_t from_step, std::int64_t tile, std::int64_t group) {
  const std::int64_t step = 4 * rows.tile * rows.tiles_at_once;  // of groups
  std::uint8_t* to = rows.words + tile / rows.tiles_at_once * step * (rows.row_bytes / 4) + group * step;
  const std::int64_t which = tile % rows.tiles_at_once;
  if constexpr (S::kHas8RowTiles) {
    if (rows.tile == 8) return S::transpose_half(from, from_step, to, p.weight->gathers);
  }
  if (!p.weight->gathers) return S::transpose(from, from_step, to + kLine * which, step);
  alignas(64) std::uint8_t lines[16 * kLine];
  S::transpose(from, from_step, lines, kLine);
  for (int i = 0; i < 16; ++i) S::transpose_bytes(lines + kLine * i, to + step * i + 16 * which, step / 4);
}

template <class S>
void sparse_load_tile(const BlockSparseProblem& p, const SparseRows& rows, std::int64_t first_row) {
  const std::int64_t count = p.M - first_row < 16 ? p.M - first_row : 16;
  const std::int64_t tile = first_row / 16, K = p.weight->K;
  if (S::kFlip == 0 && p.codes != nullptr && count == 16 && K % kLine == 0) {  // as they are
    for (std::int64_t r = 0; r < 16; ++r) rows.scales[first_row + r] = p.input.scale;
    for (std::int64_t word = 0; 4 * word < K; word += 16) {
      transpose_words<S>(p, rows, p.codes + first_row * K + 4 * word, K, tile, word);
    }
    return;
  }
  CodeFormat formats[16];
  for (std::int64_t r = 0; r < count; ++r) formats[r] = format_of<S>(p, rows, first_row + r);
  for (std::int64_t r = count; r < 16; ++r) rows.scales[first_row + r] = 0;
  // A segment of the rows at a time, which stays in the L1 cache. Rows whose distance is a power of two share few sets.
  constexpr std::int64_t kSegmentOfRows = 1024, kStep = kSegmentOfRows + kLine;  // bytes
  alignas(64) std::uint8_t lines[16 * kStep];
  if (count < 16) memset(lines + count * kStep, 0, static_cast<std::size_t>((16 - count) * kStep));
  for (std::int64_t begin = 0; begin < rows.row_bytes; begin += kSegmentOfRows) {
    const std::int64_t left = rows.row_bytes - begin, bytes = left < kSegmentOfRows ? left : kSegmentOfRows;
    for (std::int64_t r = 0; r < count; ++r) {
      std::uint8_t* to = lines + r * kStep;
      for (std::int64_t at = 0; at < bytes; at += kLine) {
        load_words<S>(p, formats[r], first_row + r, (begin + at) / 4, to + at);
      }
    }
    for (std::int64_t at = 0; at < bytes; at += kLine) {
      transpose_words<S>(p, rows, lines + at, kStep, tile, (begin + at) / 4);
    }
  }
}

}  // namespace
}  // namespace onnxpress
