// MatMulNBits with activations as bfloat16 on the matrix unit of AMX: 16 rows x 16 columns x 32 k an instruction, which
// is a span. Panels are those of AVX-512 BF16: a line of pairs is a row of an AMX tile.
#include "kernels/amx_tiles.h"
#include "kernels/matmul_nbits_bfloat16.h"
#include "kernels/minifloat_avx512vbmi.h"
#include "kernels/simd_avx512bf16.h"

namespace onnxpress {
namespace {

using S = Avx512Bf16;

constexpr std::int64_t kLineOfTiles = S::kPanelTiles * kLine;  // bytes from a line of pairs to the next

// 16 rows times tile `t` of a panel. Rows from `rows` on are computed from what is there and dropped.
void multiply_panel(const NBitsProblem& p, const BFloat16Rows& a, const std::uint16_t* panel, std::int64_t tile,
                    std::int64_t row, int rows, std::int64_t first_block, std::int64_t end_block) {
  const NBitsWeight& w = *p.weight;
  alignas(64) float sums[kTileRows][kTile];
  S::F32 y[kTileRows];
  const std::int64_t column = tile * kTile, left = w.N - column;
  unroll<kTileRows>(ONNXPRESS_EACH(r) {
    y[r.value] = first_block == 0 ? bias_of<S>(p, column)
                 : r.value < rows ? S::load(p.Y + (row + r.value) * w.N + column, left)
                                  : S::zero();
  });
  const bool centred = symmetric(w);
  const std::uint16_t* x = a.values + row * a.row_values + first_block * w.block_size;
  for (std::int64_t block = first_block; block < end_block; ++block) {
    _tile_zero(0);
    for (std::int64_t k = 0; k < w.block_size; k += kSpan) {
      _tile_loadd(1, x, a.row_values * 2);
      _tile_loadd(2, panel, kLineOfTiles);
      _tile_dpbf16ps(0, 1, 2);
      x += kSpan;
      panel += kSpan / 2 * kLineOfTiles / 2;
    }
    _tile_stored(0, sums, kLine);
    const auto scale = scale_of<S>(w, tile, block);
    unroll<kTileRows>(ONNXPRESS_EACH(r) { y[r.value] = S::fma(S::load(sums[r.value]), scale, y[r.value]); });
    if (centred) continue;
    const auto offset = offset_of<S>(w, tile, block, scale);
    const float* sum_a = a.sums + block * a.stride + row;
    unroll<kTileRows>(ONNXPRESS_EACH(r) { y[r.value] = S::fnma(offset, S::set1(sum_a[r.value]), y[r.value]); });
  }
  unroll<kTileRows>(ONNXPRESS_EACH(r) {
    if (r.value < rows) S::store(p.Y + (row + r.value) * w.N + column, y[r.value], left);
  });
}

template <class Codes>
void panel_amx(const NBitsProblem& p, const BFloat16Rows& a, std::int64_t first_tile, std::int64_t begin,
               std::int64_t end) {
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
  for_each_panel<S, Codes>(
      *p.weight, first_tile, [&](const std::uint16_t* panel, std::int64_t block, std::int64_t end_block) {
        for (std::int64_t row = begin; row < end; row += kTileRows) {
          const int rows = static_cast<int>(end - row < kTileRows ? end - row : kTileRows);
          for (int t = 0; t < S::kPanelTiles && first_tile + t < p.weight->tiles; ++t) {
            multiply_panel(p, a, panel + t * kLine / 2, first_tile + t, row, rows, block, end_block);
          }
        }
      });
  _tile_release();
}

template <class Codes>
constexpr NBitsBFloat16Product make_product() {
  // One row never comes here.
  return {"amx", {kMinRowsOfNBits, kSpan}, kTileRows, S::kPanelTiles, round_row<S>, nullptr, panel_amx<Codes>};
}

}  // namespace

extern constexpr NBitsBFloat16Kernels nbits_bfloat16_amx{{{},
                                                          {},
                                                          make_product<IntegerCodes<S, 2>>(),
                                                          make_product<IntegerCodes<S, 3>>(),
                                                          make_product<IntegerCodes<S, 4>>(),
                                                          make_product<IntegerCodes<S, 5>>(),
                                                          make_product<IntegerCodes<S, 6>>(),
                                                          make_product<IntegerCodes<S, 7>>(),
                                                          make_product<IntegerCodes<S, 8>>()}};

extern constexpr MiniFloatBFloat16Kernels minifloat_bfloat16_amx{
    {make_product<VbmiPairs<CodeKind::kE4M3FN>>(), make_product<VbmiPairs<CodeKind::kE5M2>>(),
     make_product<VbmiPairs<CodeKind::kE3M4>>(), make_product<VbmiPairs<CodeKind::kE3M2>>(),
     make_product<VbmiPairs<CodeKind::kE2M3>>(), make_product<VbmiPairs<CodeKind::kE2M1>>(),
     make_product<VbmiPairs<CodeKind::kNF4>>()}};
static_assert(has_all_formats(minifloat_bfloat16_amx));

}  // namespace onnxpress
