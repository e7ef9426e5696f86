// Many threads that pack, share and multiply at once, to be built with a sanitizer: see .ci/sanitize.
// Every result is compared with that of one thread alone, and no task may allocate: in somebody else's pool it could
// not tell of a failure. Who allocates is found out by the linker, which puts functions of this file around (--wrap).
#include <atomic>
#include <cstdio>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/block_sparse.h"
#include "kernels/encoder_layer.h"
#include "kernels/matmul_int8.h"
#include "kernels/matmul_nbits.h"
#include "ops/shared_weights.h"

thread_local bool in_task = false;
std::atomic<int> allocations_in_tasks{0};

extern "C" {
void* __real_aligned_alloc(std::size_t alignment, std::size_t size);
void* __real__Znwm(std::size_t size);  // operator new
void* __real_mmap(void* address, std::size_t size, int protection, int flags, int file, long offset);

void* __wrap_aligned_alloc(std::size_t alignment, std::size_t size) {
  allocations_in_tasks += in_task;
  return __real_aligned_alloc(alignment, size);
}

void* __wrap__Znwm(std::size_t size) {
  allocations_in_tasks += in_task;
  return __real__Znwm(size);
}

void* __wrap_mmap(void* address, std::size_t size, int protection, int flags, int file, long offset) {
  allocations_in_tasks += in_task;
  return __real_mmap(address, size, protection, flags, file, offset);
}
}

namespace onnxpress {
namespace {

constexpr int kThreads = 4;
constexpr int kRounds = 12;

// Two threads a call, which fetch the tasks from each other.
class Pair final : public Parallel {
 public:
  void run(std::size_t count, void (*task)(void*, std::size_t), void* arg) const override {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      in_task = true;
      for (std::size_t index = next++; index < count; index = next++) task(arg, index);
      in_task = false;
    };
    std::thread other(work);
    work();
    other.join();
  }
};

// A stored weight and one product with it.
struct Product {
  NBitsSource source;
  std::int64_t M;
  Compute compute;
  std::vector<std::uint8_t> codes, zero_points;
  std::vector<float> scales, A;

  Product(std::uint32_t seed, int bits, std::int64_t rows, Compute how, CodeKind kind = CodeKind::kInteger)
      : M(rows), compute(how) {
    std::mt19937 random(seed);
    source.K = 1000;
    source.N = 600;
    source.bits = bits;
    source.block_size = 32;
    const std::int64_t blocks = source.blocks();
    codes.resize(static_cast<std::size_t>(source.N * blocks * 32 * bits / 8));
    zero_points.resize(static_cast<std::size_t>(source.N * ((blocks * bits + 7) / 8)));
    scales.resize(static_cast<std::size_t>(source.N * blocks));
    A.resize(static_cast<std::size_t>(M * source.K));
    for (auto& code : codes) code = static_cast<std::uint8_t>(random());
    for (auto& point : zero_points) point = static_cast<std::uint8_t>(random());
    for (auto& scale : scales) scale = std::uniform_real_distribution<float>(0.5f, 1.0f)(random);
    for (auto& a : A) a = std::normal_distribution<float>()(random);
    source.codes = codes.data();
    source.scales = scales.data();
    if (kind == CodeKind::kInteger) source.zero_points = zero_points.data();
    source.kind = kind;
  }
  Product(const Product&) = delete;

  PackedWeight packed(const Parallel& parallel) const { return pack(source, parallel); }

  std::vector<float> multiply(const NBitsWeight& weight, Isa isa, const Parallel& parallel) const {
    std::vector<float> Y(static_cast<std::size_t>(M * source.N));
    matmul_nbits({A.data(), M, &weight, nullptr, Y.data()}, compute, isa, parallel);
    return Y;
  }
};

// The same of a block-sparse weight of int8, whose rows threads lay out for each other.
struct SparseProduct {
  BlockSparseSource source;
  std::int64_t M;
  std::vector<std::int8_t> codes;
  std::vector<std::int32_t> indices, offsets{0};
  std::vector<float> scales, A;

  SparseProduct(std::uint32_t seed, std::int64_t block_k, std::int64_t block_n, std::int64_t rows) : M(rows) {
    std::mt19937 random(seed);
    source.K = 1200;
    source.N = 600;
    source.block_k = block_k;
    source.block_n = block_n;
    for (std::int64_t row = 0; row < source.block_rows(); ++row) {
      for (std::int32_t column = 0; column < source.block_columns(); ++column) {
        if (random() % 5 == 0) indices.push_back(column);
      }
      offsets.push_back(static_cast<std::int32_t>(indices.size()));
    }
    source.blocks = static_cast<std::int64_t>(indices.size());
    codes.resize(indices.size() * static_cast<std::size_t>(block_k * block_n));
    scales.resize(static_cast<std::size_t>(source.N), 0.01f);
    A.resize(static_cast<std::size_t>(M * source.K));
    for (auto& code : codes) code = static_cast<std::int8_t>(random());
    for (auto& a : A) a = std::normal_distribution<float>()(random);
    source.codes = codes.data();
    source.indices = indices.data();
    source.offsets = offsets.data();
    source.scales = scales.data();
  }
  SparseProduct(const SparseProduct&) = delete;

  PackedBlockSparse packed(const Parallel&) const { return pack(source); }

  std::vector<float> multiply(const BlockSparseWeight& weight, Isa isa, const Parallel& parallel) const {
    std::vector<float> Y(static_cast<std::size_t>(M * source.N));
    BlockSparseProblem problem;
    problem.floats = A.data();
    problem.M = M;
    problem.weight = &weight;
    problem.floats_out = Y.data();
    block_sparse_matmul(problem, isa, parallel);
    return Y;
  }
};

// A weight of int8 and a product of rounded rows with it.
struct Int8Product {
  Int8Source source;
  std::int64_t M;
  std::vector<std::uint8_t> codes;
  std::vector<float> A;

  Int8Product(std::uint32_t seed, std::int64_t K, std::int64_t rows) : M(rows) {
    std::mt19937 random(seed);
    source.K = K;
    source.N = 300;
    codes.resize(static_cast<std::size_t>(source.K * source.N));
    A.resize(static_cast<std::size_t>(M * source.K));
    for (auto& code : codes) code = static_cast<std::uint8_t>(random());
    for (auto& a : A) a = std::normal_distribution<float>()(random);
    source.codes = codes.data();
  }
  Int8Product(const Int8Product&) = delete;

  PackedInt8 packed(const Parallel& parallel) const { return pack(source, parallel); }

  std::vector<float> multiply(const Int8Weight& weight, Isa isa, const Parallel& parallel) const {
    std::vector<float> Y(static_cast<std::size_t>(M * source.N));
    Int8Problem problem;
    problem.floats = A.data();
    problem.input = dynamic_format(A.data(), static_cast<std::int64_t>(A.size()), isa, parallel);
    problem.M = M;
    problem.weight = &weight;
    problem.floats_out = Y.data();
    matmul_int8(problem, isa, parallel);
    return Y;
  }
};

// A layer of an encoder and a batch, of which some tokens do not count.
struct Layer {
  std::int64_t batch, sequence, H, F;
  std::vector<std::uint8_t> codes;
  std::vector<float> numbers, x;
  std::vector<std::int32_t> mask;
  PackedInt8 qkv, out, up, down;
  EncoderLayer layer;

  Layer(std::uint32_t seed, std::int64_t sequences, std::int64_t tokens, std::int64_t size, std::int64_t wide,
        std::int64_t heads)
      : batch(sequences), sequence(tokens), H(size), F(wide) {
    std::mt19937 random(seed);
    codes.resize(static_cast<std::size_t>(H * std::max(3 * H, F)));
    numbers.resize(static_cast<std::size_t>(std::max(3 * H, F)), 0.01f);
    x.resize(static_cast<std::size_t>(batch * sequence * H));
    for (auto& code : codes) code = static_cast<std::uint8_t>(random());
    for (auto& each : x) each = std::normal_distribution<float>()(random);
    for (std::int64_t token = 0; token < batch * sequence; ++token) mask.push_back(random() % 7 != 0 ? 1 : 0);
    qkv = packed(H, 3 * H);
    out = packed(H, H);
    up = packed(H, F);
    down = packed(F, H);
    layer.heads = heads;
    layer.width = H / heads;
    layer.scale = 0.25f;
    layer.qkv = {qkv.view, numbers.data()};
    layer.out = {out.view, numbers.data()};
    layer.up = {up.view, numbers.data()};
    layer.down = {down.view, numbers.data()};
    layer.norm1 = layer.norm2 = {numbers.data(), numbers.data(), 1e-5f};
  }
  Layer(const Layer&) = delete;

  PackedInt8 packed(std::int64_t K, std::int64_t N) const {
    Int8Source source;
    source.K = K;
    source.N = N;
    source.codes = codes.data();
    source.scales = numbers.data();
    return pack(source, Sequential());
  }

  std::vector<float> run(Isa isa, const Parallel& parallel) const {
    std::vector<float> y(x.size());
    encoder_layer({&layer, batch, sequence, x.data(), mask.data(), y.data()}, isa, parallel);
    return y;
  }
};

int wrong_layers(Isa isa) {
  const Layer layers[] = {{11, 1, 100, 48, 80, 3}, {12, 9, 130, 40, 33, 2}, {13, 40, 9, 21, 7, 1}};
  std::vector<std::vector<float>> expected;
  for (const Layer& layer : layers) expected.push_back(layer.run(isa, Sequential()));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < kRounds; ++round) {
        const auto which = static_cast<std::size_t>(thread + round) % std::size(layers);
        if (layers[which].run(isa, Pair()) != expected[which]) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return wrong;
}

template <class P, std::size_t Count>
int wrong_results(const P (&products)[Count], Isa isa) {
  std::vector<std::vector<float>> expected;
  for (const P& product : products) {
    expected.push_back(product.multiply(product.packed(Sequential()).view, isa, Sequential()));
  }
  std::atomic<int> wrong{0};
  const auto work = [&](int thread) {
    for (int round = 0; round < kRounds; ++round) {
      // Each weight is packed anew, and dropped by some while others take it.
      const auto which = static_cast<std::size_t>(thread + round) % Count;
      const auto weight = share(products[which].packed(Pair()));
      if (products[which].multiply(weight.view, isa, Pair()) != expected[which]) ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
  return wrong;
}

int wrong_results(Isa isa) {
  const Product products[] = {
      {1, 4, 1, Compute::kInt8},
      {1, 4, 37, Compute::kInt8},
      {2, 3, 5, Compute::kFloat32},
      {3, 8, 2, Compute::kInt8},
      {1, 4, 1, Compute::kFloat32, CodeKind::kNF4},
      {4, 6, 9, Compute::kBFloat16, CodeKind::kE2M3},
  };
  const SparseProduct sparse[] = {{5, 4, 4, 70}, {6, 4, 1, 70}, {7, 1, 4, 33}, {8, 4, 4, 2}};
  const Int8Product int8[] = {{9, 1000, 37}, {10, 70000, 3}};
  return wrong_results(products, isa) + wrong_results(sparse, isa) + wrong_results(int8, isa) + wrong_layers(isa);
}

}  // namespace
}  // namespace onnxpress

int main() {
  int wrong = 0;
  for (const onnxpress::Isa isa : onnxpress::supported_isas()) {
    const int here = onnxpress::wrong_results(isa);
    std::printf("%s: %d of %d results wrong\n", onnxpress::isa_name(isa), here,
                4 * onnxpress::kThreads * onnxpress::kRounds);
    wrong += here;
  }
  std::printf("%d allocations in tasks\n", allocations_in_tasks.load());
  return wrong == 0 && allocations_in_tasks == 0 ? 0 : 1;
}
