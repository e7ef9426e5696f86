// The kernels of MatMulNBits, written once over a vector type (simd_<isa>.h) and compiled once an instruction set.
//
// Everything here has internal linkage and nothing comes from the standard library: the linker keeps one copy of an
// inline function for all, and a copy compiled with AVX-512 must never serve a CPU without it.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"
#include "kernels/matmul_nbits_kernels.h"

namespace onnxpress {
namespace {

constexpr int kGroups = 8;              // of 4 k in a span
constexpr std::int64_t kLine = 64;      // bytes of a group: 16 columns x 4 k
constexpr std::int64_t kPanelK = 4096;  // an unpacked panel of codes and its scales stays within 256 KiB of L2
constexpr std::int64_t kFloatK = 256;   // a panel of 32 float columns stays within 32 KiB of L1

template <int I>
struct Index {
  static constexpr int value = I;
};

// body(Index<0>), body(Index<1>), ... body(Index<Count - 1>)
template <int Count, int I = 0, class F>
__attribute__((always_inline)) inline void unroll(const F& body) {
  if constexpr (I < Count) {
    body(Index<I>{});
    unroll<Count, I + 1>(body);
  }
}
#define ONNXPRESS_EACH(i) [&](auto i) __attribute__((always_inline))

// Group G of a packed span: 64 unsigned codes.
template <class S, int Bits, int G>
__attribute__((always_inline)) inline typename S::U8 load_group(const std::uint8_t* span) {
  if constexpr (Bits == 8) {
    return S::load(span + kLine * G);
  } else {
    constexpr bool k4 = (Bits & 4) != 0, k2 = (Bits & 2) != 0, k1 = (Bits & 1) != 0;
    constexpr int kBase2 = k4 ? 4 : 0;
    constexpr int kBase1 = kBase2 + (k2 ? 2 : 0);
    typename S::U8 codes{};
    if constexpr (k4) codes = S::template field<G / 4 * 4>(S::load(span + kLine * (G % 4)), 15);
    if constexpr (k2) {
      const auto part = S::template field<G / 2 * 2 - kBase2>(S::load(span + kLine * (kBase2 + G % 2)), 3 << kBase2);
      codes = k4 ? S::bit_or(codes, part) : part;
    }
    if constexpr (k1) {
      codes = S::bit_or(codes, S::template field<G - kBase1>(S::load(span + kLine * kBase1), 1 << kBase1));
    }
    return codes;
  }
}

inline const std::uint8_t* span_of(const NBitsWeight& w, std::int64_t tile, std::int64_t span) {
  return w.codes + (tile * (w.padded_k / kSpan) + span) * kLine * w.bits;
}

template <class S>
inline typename S::F32 scale_of(const NBitsWeight& w, std::int64_t tile, std::int64_t block) {
  const std::int64_t at = (tile * w.blocks + block) * kTile;
  return w.half_scales != nullptr ? S::load_half(w.half_scales + at) : S::load(w.scales + at);
}

template <class S>
inline typename S::F32 zero_point_of(const NBitsWeight& w, std::int64_t tile, std::int64_t block) {
  const std::int64_t at = (tile * w.blocks + block) * kTile;
  if (w.zero_points != nullptr) return S::load_bytes(w.zero_points + at);
  if (w.float_zero_points != nullptr) return S::load(w.float_zero_points + at);
  return S::set1(static_cast<float>(1 << (w.bits - 1)));
}

inline bool symmetric(const NBitsWeight& w) { return w.zero_points == nullptr && w.float_zero_points == nullptr; }

// What an output starts from: the bias, or zero.
template <class S>
inline typename S::F32 bias_of(const NBitsProblem& p, std::int64_t column) {
  return p.bias != nullptr ? S::load(p.bias + column, p.weight->N - column) : S::zero();
}

template <class S>
void quantize_row(const NBitsProblem& p, const QuantizedRows& out, std::int64_t row) {
  const NBitsWeight& w = *p.weight;
  const float* values = p.A + row * w.K;
  for (std::int64_t block = 0; block < w.blocks; ++block) {
    const std::int64_t begin = block * w.block_size;
    const std::int64_t left = w.K - begin;
    std::int8_t* codes = out.codes + row * w.padded_k + begin;
    const std::int64_t count = left < w.block_size ? left : w.block_size;
    const float peak = S::max_abs(values + begin, count);
    out.scales[row * w.blocks + block] = peak * (1.0f / 127.0f);
    // A peak of NaN or infinity makes the scale, and so the result, the same; 127 / peak overflows for tiny ones.
    const float factor = peak <= FLT_MAX && peak > 127.0f / FLT_MAX ? 127.0f / peak : 0.0f;
    auto sum = S::zero_int();
    if (factor != 0.0f) {
      const auto factors = S::set1(factor);
      for (std::int64_t k = 0; k < w.block_size; k += kTile) {
        sum = S::quantize(values + begin + k, count - k, factors, codes + k, sum);
      }
    } else {
      memset(codes, 0, static_cast<std::size_t>(w.block_size));
      if (!(peak <= FLT_MAX)) codes[0] = 1;  // so that the result is not lost in a weight sum of zero codes
    }
    out.sums[row * w.blocks + block] = factor != 0.0f ? S::total(sum) : codes[0];
  }
}

// One row: codes go from memory to the dot product without a stop.
template <class S, int Bits, int Tiles>
void row_int8_tiles(const NBitsProblem& p, const QuantizedRows& rows, std::int64_t tile) {
  using Dot = typename S::template Dot<Bits>;
  const NBitsWeight& w = *p.weight;
  const bool centred = symmetric(w);
  const std::int32_t middle = centred ? 1 << (Bits - 1) : 0;
  typename S::F32 y[Tiles];
  unroll<Tiles>(ONNXPRESS_EACH(t) { y[t.value] = bias_of<S>(p, (tile + t.value) * kTile); });

  Dot dot[Tiles];
  const auto finish = [&](std::int64_t block) __attribute__((always_inline)) {
    const auto scale_a = S::set1(rows.scales[block]);
    const auto offset_a = S::set1(rows.scales[block] * static_cast<float>(rows.sums[block]));
    unroll<Tiles>(ONNXPRESS_EACH(t) {
      const auto scale = scale_of<S>(w, tile + t.value, block);
      y[t.value] = S::fma(dot[t.value].value(), S::mul(scale, scale_a), y[t.value]);
      if (!centred) {
        y[t.value] = S::fnma(S::mul(scale, zero_point_of<S>(w, tile + t.value, block)), offset_a, y[t.value]);
      }
    });
  };
  const auto start = [&](std::int64_t block) __attribute__((always_inline)) {
    unroll<Tiles>(ONNXPRESS_EACH(t) { dot[t.value].start(middle, rows.sums[block]); });
  };

  const std::uint8_t* codes[Tiles];
  unroll<Tiles>(ONNXPRESS_EACH(t) { codes[t.value] = span_of(w, tile + t.value, 0); });
  const std::int8_t* a = rows.codes;
  const auto add = [&](auto g, auto run) __attribute__((always_inline)) {
    constexpr int G = decltype(g)::value, Run = decltype(run)::value;
    unroll<Tiles>(ONNXPRESS_EACH(t) {
      dot[t.value].template add<G % Run, Run>(load_group<S, Bits, G>(codes[t.value]), a + 4 * G);
    });
  };
  const auto next = [&]() __attribute__((always_inline)) {
    unroll<Tiles>(ONNXPRESS_EACH(t) { codes[t.value] += kLine * Bits; });
    a += kSpan;
  };
  if (w.block_size == kTile) {
    for (std::int64_t block = 0; block < w.blocks; block += 2) {
      start(block);
      unroll<4>(ONNXPRESS_EACH(g) { add(g, Index<4>{}); });
      finish(block);
      start(block + 1);
      unroll<4>(ONNXPRESS_EACH(g) { add(Index<g.value + 4>{}, Index<4>{}); });
      finish(block + 1);
      next();
    }
  } else {
    for (std::int64_t block = 0; block < w.blocks; ++block) {
      start(block);
      for (std::int64_t span = 0; span < w.block_size / kSpan; ++span) {
        unroll<kGroups>(ONNXPRESS_EACH(g) { add(g, Index<kGroups>{}); });
        next();
      }
      finish(block);
    }
  }
  unroll<Tiles>(ONNXPRESS_EACH(t) {
    const std::int64_t column = (tile + t.value) * kTile;
    S::store(p.Y + column, y[t.value], w.N - column);
  });
}

template <class S, int Bits>
void row_int8(const NBitsProblem& p, const QuantizedRows& rows, std::int64_t first_tile, std::int64_t tiles) {
  std::int64_t tile = first_tile;
  const std::int64_t end = first_tile + tiles;
  for (; tile + S::kRowTiles <= end; tile += S::kRowTiles) row_int8_tiles<S, Bits, S::kRowTiles>(p, rows, tile);
  for (; tile < end; ++tile) row_int8_tiles<S, Bits, 1>(p, rows, tile);
}

// body(Index<Rows>, row) with Rows as near S::kRows as equal groups allow: 8 rows are 4 and 4, not 6, 1 and 1.
template <int Rows, class F>
__attribute__((always_inline)) inline void call_with_rows(std::int64_t rows, std::int64_t row, const F& body) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return call_with_rows<Rows - 1>(rows, row, body);
  }
  body(Index<Rows>{}, row);
}

template <class S, class F>
void for_each_group_of_rows(std::int64_t begin, std::int64_t end, const F& body) {
  std::int64_t groups = (end - begin + S::kRows - 1) / S::kRows;
  for (std::int64_t row = begin; row < end; --groups) {
    const std::int64_t rows = (end - row + groups - 1) / groups;
    call_with_rows<S::kRows>(rows, row, body);
    row += rows;
  }
}

// A panel of columns, unpacked once for all rows.
template <class S>
struct Panel {
  static constexpr int kTiles = S::kPanelTiles;
  static constexpr std::int64_t kBlocks = kPanelK / kTile + 2;
  alignas(64) std::uint8_t codes[kPanelK * kTile * kTiles];  // [group][tile][64]
  alignas(64) float scales[kBlocks * kTile * kTiles];        // [block][tile][16]
  alignas(64) float offsets[kBlocks * kTile * kTiles];       // zero_point * scale
};

template <class S, int Bits>
void unpack(const NBitsWeight& w, std::int64_t tile, std::int64_t k, std::int64_t count, Panel<S>& panel) {
  for (int t = 0; t < Panel<S>::kTiles; ++t) {
    const std::int64_t from = tile + t < w.tiles ? tile + t : tile;  // beyond the last: computed, not stored
    const std::uint8_t* span = span_of(w, from, k / kSpan);
    std::uint8_t* out = panel.codes + t * kLine;
    for (std::int64_t s = 0; s < count / kSpan; ++s, span += kLine * Bits) {
      unroll<kGroups>(ONNXPRESS_EACH(g) {
        S::store(out, load_group<S, Bits, decltype(g)::value>(span));
        out += kLine * Panel<S>::kTiles;
      });
    }
    for (std::int64_t b = 0; b < count / w.block_size; ++b) {
      const std::int64_t block = k / w.block_size + b;
      const std::int64_t at = (b * Panel<S>::kTiles + t) * kTile;
      const auto scale = scale_of<S>(w, from, block);
      S::store(panel.scales + at, scale);
      if (!symmetric(w)) S::store(panel.offsets + at, S::mul(scale, zero_point_of<S>(w, from, block)));
    }
  }
}

// Rows x Panel::kTiles tiles over one stretch of k, all sums in registers.
template <class S, class Dot, int Rows>
void multiply_panel(const NBitsProblem& p, const QuantizedRows& a, const Panel<S>& panel, std::int64_t tile,
                    std::int64_t row, std::int64_t k, std::int64_t count) {
  constexpr int kTiles = Panel<S>::kTiles;
  const NBitsWeight& w = *p.weight;
  const bool centred = symmetric(w);
  const std::int32_t middle = centred ? 1 << (w.bits - 1) : 0;
  typename S::F32 y[Rows][kTiles];
  unroll<Rows>(ONNXPRESS_EACH(i) {
    unroll<kTiles>(ONNXPRESS_EACH(t) {
      const std::int64_t column = (tile + t.value) * kTile;
      y[i.value][t.value] =
          k == 0 ? bias_of<S>(p, column) : S::load(p.Y + (row + i.value) * w.N + column, w.N - column);
    });
  });

  const std::uint8_t* codes = panel.codes;
  const std::int8_t* x = a.codes + row * w.padded_k + k;
  const float* scale_a = a.scales + row * w.blocks + k / w.block_size;
  const std::int32_t* sum_a = a.sums + row * w.blocks + k / w.block_size;
  const float* scale = panel.scales;
  const float* offset = panel.offsets;
  Dot dot[Rows][kTiles];
  const auto start = [&]() __attribute__((always_inline)) {
    unroll<Rows>(ONNXPRESS_EACH(i) {
      unroll<kTiles>(ONNXPRESS_EACH(t) { dot[i.value][t.value].start(middle, sum_a[i.value * w.blocks]); });
    });
  };
  const auto add = [&](auto index, auto run) __attribute__((always_inline)) {
    typename S::U8 group[kTiles];
    unroll<kTiles>(ONNXPRESS_EACH(t) { group[t.value] = S::load(codes + t.value * kLine); });
    unroll<Rows>(ONNXPRESS_EACH(i) {
      unroll<kTiles>(ONNXPRESS_EACH(t) {
        dot[i.value][t.value].template add<decltype(index)::value, decltype(run)::value>(group[t.value],
                                                                                         x + i.value * w.padded_k);
      });
    });
    codes += kLine * kTiles;
    x += 4;
  };
  const auto finish = [&]() __attribute__((always_inline)) {
    typename S::F32 scales[kTiles];
    unroll<kTiles>(ONNXPRESS_EACH(t) { scales[t.value] = S::load(scale + t.value * kTile); });
    unroll<Rows>(ONNXPRESS_EACH(i) {
      const auto sa = S::set1(scale_a[i.value * w.blocks]);
      unroll<kTiles>(ONNXPRESS_EACH(t) {
        y[i.value][t.value] = S::fma(dot[i.value][t.value].value(), S::mul(scales[t.value], sa), y[i.value][t.value]);
      });
    });
    if (!centred) {
      unroll<Rows>(ONNXPRESS_EACH(i) {
        const auto oa = S::set1(scale_a[i.value * w.blocks] * static_cast<float>(sum_a[i.value * w.blocks]));
        unroll<kTiles>(ONNXPRESS_EACH(t) {
          y[i.value][t.value] = S::fnma(S::load(offset + t.value * kTile), oa, y[i.value][t.value]);
        });
      });
    }
    scale += kTiles * kTile;
    offset += kTiles * kTile;
    ++scale_a;
    ++sum_a;
  };
  if (w.block_size == kTile) {
    for (std::int64_t block = 0; block < count / kTile; ++block) {
      start();
      unroll<4>(ONNXPRESS_EACH(g) { add(g, Index<4>{}); });
      finish();
    }
  } else {
    for (std::int64_t block = 0; block < count / w.block_size; ++block) {
      start();
      for (std::int64_t span = 0; span < w.block_size / kSpan; ++span) {
        unroll<kGroups>(ONNXPRESS_EACH(g) { add(g, Index<kGroups>{}); });
      }
      finish();
    }
  }
  unroll<Rows>(ONNXPRESS_EACH(i) {
    unroll<kTiles>(ONNXPRESS_EACH(t) {
      const std::int64_t column = (tile + t.value) * kTile;
      S::store(p.Y + (row + i.value) * w.N + column, y[i.value][t.value], w.N - column);
    });
  });
}

template <class S, int Bits>
void panel_int8(const NBitsProblem& p, const QuantizedRows& rows, std::int64_t first_tile, std::int64_t begin,
                std::int64_t end) {
  static thread_local Panel<S> panel;
  const NBitsWeight& w = *p.weight;
  // As few stretches of k as fit the panel, of about the same length, each of whole blocks and spans.
  const std::int64_t step = w.block_size > kSpan ? w.block_size : kSpan;
  const std::int64_t stretches = (w.padded_k + kPanelK - 1) / kPanelK;
  const std::int64_t length = ((w.padded_k + stretches - 1) / stretches + step - 1) / step * step;
  for (std::int64_t k = 0; k < w.padded_k; k += length) {
    const std::int64_t count = w.padded_k - k < length ? w.padded_k - k : length;
    unpack<S, Bits>(w, first_tile, k, count, panel);
    for_each_group_of_rows<S>(begin, end, [&](auto rows_at_once, std::int64_t row) {
      multiply_panel<S, typename S::template Dot<Bits>, decltype(rows_at_once)::value>(p, rows, panel, first_tile, row,
                                                                                       k, count);
    });
  }
}

// The float path: kFloatK rows of the weight as floats, then rank-1 updates.
template <class S, int Bits>
void dequantize(const NBitsWeight& w, std::int64_t tile, std::int64_t k, std::int64_t count, float* out) {
  constexpr int kTiles = S::kPanelTiles;
  for (int t = 0; t < kTiles; ++t) {
    const std::int64_t from = tile + t < w.tiles ? tile + t : tile;
    for (std::int64_t s = 0; s < count; s += kSpan) {
      const std::uint8_t* span = span_of(w, from, (k + s) / kSpan);
      // A span lies in one block, or is two blocks of 16.
      const std::int64_t block = (k + s) / w.block_size;
      const std::int64_t second = block + (w.block_size == kTile ? 1 : 0);
      const typename S::F32 scales[2] = {scale_of<S>(w, from, block), scale_of<S>(w, from, second)};
      const typename S::F32 zero_points[2] = {zero_point_of<S>(w, from, block), zero_point_of<S>(w, from, second)};
      unroll<kGroups>(ONNXPRESS_EACH(g) {
        constexpr int kHalf = decltype(g)::value / 4;
        const auto codes = load_group<S, Bits, decltype(g)::value>(span);
        unroll<4>(ONNXPRESS_EACH(j) {
          const auto code = S::template byte_to_float<decltype(j)::value>(codes);
          S::store(out + ((s + 4 * g.value + j.value) * kTiles + t) * kTile,
                   S::mul(S::sub(code, zero_points[kHalf]), scales[kHalf]));
        });
      });
    }
  }
}

template <class S, int Rows>
void multiply_floats(const NBitsProblem& p, const float* panel, std::int64_t tile, std::int64_t row, std::int64_t k,
                     std::int64_t count) {
  constexpr int kTiles = S::kPanelTiles;
  const NBitsWeight& w = *p.weight;
  typename S::F32 y[Rows][kTiles];
  unroll<Rows>(ONNXPRESS_EACH(i) {
    unroll<kTiles>(ONNXPRESS_EACH(t) {
      const std::int64_t column = (tile + t.value) * kTile;
      y[i.value][t.value] =
          k == 0 ? bias_of<S>(p, column) : S::load(p.Y + (row + i.value) * w.N + column, w.N - column);
    });
  });
  const float* a = p.A + row * w.K + k;
  for (std::int64_t i = 0; i < count; ++i, ++a, panel += kTiles * kTile) {
    typename S::F32 weights[kTiles];
    unroll<kTiles>(ONNXPRESS_EACH(t) { weights[t.value] = S::load(panel + t.value * kTile); });
    unroll<Rows>(ONNXPRESS_EACH(r) {
      const auto x = S::set1(a[r.value * w.K]);
      unroll<kTiles>(ONNXPRESS_EACH(t) { y[r.value][t.value] = S::fma(x, weights[t.value], y[r.value][t.value]); });
    });
  }
  unroll<Rows>(ONNXPRESS_EACH(i) {
    unroll<kTiles>(ONNXPRESS_EACH(t) {
      const std::int64_t column = (tile + t.value) * kTile;
      S::store(p.Y + (row + i.value) * w.N + column, y[i.value][t.value], w.N - column);
    });
  });
}

template <class S, int Bits>
void panel_float(const NBitsProblem& p, std::int64_t first_tile, std::int64_t begin, std::int64_t end) {
  alignas(64) float panel[kFloatK * S::kPanelTiles * kTile];
  const NBitsWeight& w = *p.weight;
  for (std::int64_t k = 0; k < w.K; k += kFloatK) {
    const std::int64_t count = w.K - k < kFloatK ? w.K - k : kFloatK;
    dequantize<S, Bits>(w, first_tile, k, count, panel);
    for_each_group_of_rows<S>(begin, end, [&](auto rows_at_once, std::int64_t row) {
      multiply_floats<S, decltype(rows_at_once)::value>(p, panel, first_tile, row, k, count);
    });
  }
}

// One row in float32, straight from the packed weight: a panel would be written and read once each.
template <class S, int Bits>
void row_float(const NBitsProblem& p, std::int64_t first_tile, std::int64_t tiles) {
  const NBitsWeight& w = *p.weight;
  for (std::int64_t tile = first_tile; tile < first_tile + tiles; ++tile) {
    typename S::F32 y = bias_of<S>(p, tile * kTile);
    // Four sums, one for each byte of a group, keep as many chains of additions in flight. The groups of a span
    // are in one block, or in two of 16.
    typename S::F32 sums[4];
    const auto clear = [&]() __attribute__((always_inline)) {
      unroll<4>(ONNXPRESS_EACH(j) { sums[j.value] = S::zero(); });
    };
    const auto finish = [&](std::int64_t block) __attribute__((always_inline)) {
      const auto sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
      y = S::fma(sum, scale_of<S>(w, tile, block), y);
      clear();
    };
    clear();
    for (std::int64_t k = 0; k < w.K; k += kSpan) {
      alignas(64) float tail[kSpan] = {};
      const float* a = p.A + k;
      if (w.K - k < kSpan) {
        memcpy(tail, a, static_cast<std::size_t>(w.K - k) * sizeof(float));
        a = tail;
      }
      const std::uint8_t* span = span_of(w, tile, k / kSpan);
      const std::int64_t block = k / w.block_size;
      auto zero_point = zero_point_of<S>(w, tile, block);
      unroll<kGroups>(ONNXPRESS_EACH(g) {
        if (g.value == 4 && w.block_size == kTile) {
          finish(block);
          zero_point = zero_point_of<S>(w, tile, block + 1);
        }
        const auto codes = load_group<S, Bits, decltype(g)::value>(span);
        unroll<4>(ONNXPRESS_EACH(j) {
          const auto code = S::sub(S::template byte_to_float<decltype(j)::value>(codes), zero_point);
          sums[j.value] = S::fma(code, S::set1(a[4 * g.value + j.value]), sums[j.value]);
        });
      });
      if (w.block_size == kTile) {
        finish(block + 1);
      } else if ((k + kSpan) % w.block_size == 0 || k + kSpan >= w.K) {
        finish(block);
      }
    }
    S::store(p.Y + tile * kTile, y, w.N - tile * kTile);
  }
}

template <class S>
void to_float(const std::uint16_t* halves, float* floats, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kTile <= count; i += kTile) S::store(floats + i, S::load_half(halves + i));
  for (; i < count; ++i) floats[i] = half_to_float(halves[i]);
}

template <class S>
void to_half(const float* floats, std::uint16_t* halves, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kTile <= count; i += kTile) S::store_half(halves + i, S::load(floats + i));
  for (; i < count; ++i) halves[i] = float_to_half(floats[i]);
}

template <class S>
constexpr NBitsKernels make_kernels() {
  return {S::kName,
          quantize_row<S>,
          {nullptr, nullptr, row_int8<S, 2>, row_int8<S, 3>, row_int8<S, 4>, row_int8<S, 5>, row_int8<S, 6>,
           row_int8<S, 7>, row_int8<S, 8>},
          {nullptr, nullptr, row_float<S, 2>, row_float<S, 3>, row_float<S, 4>, row_float<S, 5>, row_float<S, 6>,
           row_float<S, 7>, row_float<S, 8>},
          {nullptr, nullptr, panel_int8<S, 2>, panel_int8<S, 3>, panel_int8<S, 4>, panel_int8<S, 5>, panel_int8<S, 6>,
           panel_int8<S, 7>, panel_int8<S, 8>},
          {nullptr, nullptr, panel_float<S, 2>, panel_float<S, 3>, panel_float<S, 4>, panel_float<S, 5>,
           panel_float<S, 6>, panel_float<S, 7>, panel_float<S, 8>},
          S::kPanelTiles,
          to_float<S>,
          to_half<S>};
}

}  // namespace
}  // namespace onnxpress
