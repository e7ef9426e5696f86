// Every instruction set of this CPU against portable code, at sizes that divide into nothing: products of integers
// equal bit for bit, others within the rounding of their sums. For CPUs that an emulator has: see .ci/cross.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "tests/native/problems.h"

namespace onnxpress {
namespace {

constexpr std::int64_t kRows[] = {1, 2, 3, 5, 6, 7, 13, 17, 34};

// The largest difference, in parts of the largest result.
double distance(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference = std::max(difference, static_cast<double>(std::abs(got[i] - want[i])));
    size = std::max(size, static_cast<double>(std::abs(want[i])));
    if (!std::isfinite(got[i])) return INFINITY;
  }
  return difference / size;
}

// What portable code makes of each problem is made once, and held against every other instruction set.
class Check {
 public:
  template <class P>
  void operator()(const std::string& what, const P& product, double most) {
    const auto packed = product.packed(Sequential());
    judge(what, [&](Isa isa) { return product.multiply(packed.view, isa, Sequential()); }, most);
  }
  template <class Run>
  void judge(const std::string& what, const Run& run, double most) {
    const std::vector<float> want = run(Isa{});
    for (Count& each : counts_) {
      const double seen = distance(run(each.isa), want);
      ++each.all;
      if (seen <= most) continue;
      ++each.wrong;
      std::printf("%s: %s differs by %g of the largest\n", isa_name(each.isa), what.c_str(), seen);
    }
  }
  int finish() const {
    int wrong = 0;
    for (const Count& each : counts_) {
      std::printf("%s: %d of %d results differ from portable code\n", isa_name(each.isa), each.wrong, each.all);
      wrong += each.wrong;
    }
    return wrong;
  }

 private:
  struct Count {
    Isa isa;
    int wrong = 0, all = 0;
  };
  static std::vector<Count> others() {
    std::vector<Count> counts;
    for (const Isa isa : supported_isas()) {
      if (isa != Isa{}) counts.push_back({isa});
    }
    return counts;
  }

  std::vector<Count> counts_ = others();
};

int wrong_results() {
  Check check;
  std::uint32_t seed = 1;
  constexpr double kExact = 0, kRounded = 2e-6, kBFloat16 = 5e-3;
  constexpr CodeKind kKinds[] = {CodeKind::kE4M3FN, CodeKind::kE5M2, CodeKind::kE3M4, CodeKind::kE3M2,
                                 CodeKind::kE2M3,   CodeKind::kE2M1, CodeKind::kNF4};
  for (const std::int64_t M : kRows) {
    const std::string rows = " of " + std::to_string(M) + " rows";
    for (const std::int64_t K : {1, 31, 65, 300}) {
      for (const std::int64_t N : {1, 17, 100}) check("matmul_int8" + rows, Int8Product(seed++, K, M, N), kExact);
    }
    for (const auto& [block_k, block_n] : {std::pair{4, 4}, {4, 1}, {1, 4}, {3, 5}, {8, 2}, {1, 16}}) {
      check("block_sparse" + rows, SparseProduct(seed++, block_k, block_n, M, 130, 131), kExact);
    }
    for (int bits = 2; bits <= 8; ++bits) {
      for (const std::int64_t block : {16, 32, 128}) {
        const std::string what =
            "matmul_nbits of " + std::to_string(bits) + " bits, block " + std::to_string(block) + rows;
        for (const Compute compute : {Compute::kInt8, Compute::kFloat32, Compute::kBFloat16}) {
          const double most = compute == Compute::kBFloat16 ? kBFloat16 : kRounded;
          check(what, Product(seed++, bits, M, compute, CodeKind::kInteger, {1100, 37, block}), most);
        }
      }
    }
    for (const CodeKind kind : kKinds) {
      const MiniFloat& format = minifloat(kind);
      Product product(seed++, format.bits(), M, Compute::kFloat32, kind, {300, 37, 32});
      for (auto& code : product.codes) code &= 0x3b;  // no infinity, no NaN
      check(format.name + rows, product, kRounded);
    }
  }
  // Rounding to codes of 8 bits turns a last bit into a step of 1/255, now and then.
  const Layer layers[] = {{11, 1, 100, 48, 80, 3}, {12, 3, 37, 40, 33, 2}, {13, 5, 9, 21, 7, 1}};
  for (const Layer& layer : layers) {
    check.judge("encoder_layer", [&](Isa isa) { return layer.run(isa, Sequential()); }, 2e-2);
  }
  return check.finish();
}

}  // namespace
}  // namespace onnxpress

int main() { return onnxpress::wrong_results() == 0 ? 0 : 1; }
