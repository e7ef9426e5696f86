// Problems of all kernels with random numbers, for the tests that are programs.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/bit_planes.h"
#include "kernels/block_sparse.h"
#include "kernels/encoder_layer.h"
#include "kernels/matmul_int8.h"
#include "kernels/matmul_nbits.h"

namespace onnxpress {

struct WeightSize {
  std::int64_t K, N, block;
};

// A stored weight and one product with it.
struct Product {
  NBitsSource source;
  std::int64_t M;
  Compute compute;
  std::vector<std::uint8_t> codes, zero_points;
  std::vector<float> scales, A;

  Product(std::uint32_t seed, int bits, std::int64_t rows, Compute how, CodeKind kind = CodeKind::kInteger,
          WeightSize size = {1000, 600, 32})
      : M(rows), compute(how) {
    std::mt19937 random(seed);
    source.K = size.K;
    source.N = size.N;
    source.bits = bits;
    source.block_size = size.block;
    const std::int64_t blocks = source.blocks();
    codes.resize(static_cast<std::size_t>(source.N * blocks * packed_bytes(size.block, bits)));
    zero_points.resize(static_cast<std::size_t>(source.N * packed_bytes(blocks, bits)));
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

  SparseProduct(std::uint32_t seed, std::int64_t block_k, std::int64_t block_n, std::int64_t rows,
                std::int64_t K = 1200, std::int64_t N = 600)
      : M(rows) {
    std::mt19937 random(seed);
    source.K = K;
    source.N = N;
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

  Int8Product(std::uint32_t seed, std::int64_t K, std::int64_t rows, std::int64_t N = 300) : M(rows) {
    std::mt19937 random(seed);
    source.K = K;
    source.N = N;
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

}  // namespace onnxpress
