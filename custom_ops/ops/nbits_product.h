// A MatMulNBits or MatMulMiniFloat node apart from how it came in, as a custom op or through the execution provider:
// its attributes checked, its weight packed, its product computed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/matmul_nbits.h"
#include "ort/ort.h"

namespace onnxpress {

struct NBitsAttributes {
  std::int64_t K = 0, N = 0, bits = 0, block_size = 0, accuracy_level = 0;
  CodeKind kind = CodeKind::kInteger;
};

// Of a node MatMulMiniFloat. Throws InvalidArgument, with the label, for a format or a level that there is not.
NBitsAttributes minifloat_attributes(const std::string& label, const std::string& format, std::int64_t K,
                                     std::int64_t N, std::int64_t block_size, std::int64_t accuracy_level);

struct NBitsTypes {
  ort::ElementType activation, scale, zero_point;
};

// Of float32, float16, bfloat16, or uint8 for exponents.
ScaleType scale_type_of(ort::ElementType type);

// What follows the sums of a product.
struct NBitsEpilogue {
  const void* bias = nullptr;  // [N] of the type of A, or null
  Activation activation = Activation::kNone;
  // Of the shape of the output and float32, or null.
  const ort::Value* gate = nullptr;
  const ort::Value* addend = nullptr;
  Glu glu = Glu::kNone;
};

// What `compute` wrote: [M, N], or [M, N / 2] with a gated linear unit.
struct NBitsOutput {
  std::int64_t M;
  const void* values;
};

class NBitsProduct {
 public:
  // `label` is what messages begin with: the op and the name of the node. Throws InvalidArgument.
  NBitsProduct(const ort::Api& api, std::string label, const NBitsAttributes& attributes, const NBitsTypes& types,
               Isa isa);

  const std::string& label() const { return label_; }
  ort::ElementType activation() const { return types_.activation; }
  std::int64_t accuracy_level() const { return attributes_.accuracy_level; }

  // The weight as it is stored, to be packed. Throws InvalidArgument where a size does not fit the attributes, or
  // floating-point codes or their scales are no numbers. `zero_points` may be null.
  NBitsSource weight(const ort::Value* codes, const ort::Value* scales, const ort::Value* zero_points) const;

  // Throws InvalidArgument where floating-point codes or their scales are no numbers.
  void check_numbers(const NBitsSource& weight) const;

  // The values of a bias, null for none. Throws InvalidArgument where its size is not N.
  const void* bias(const ort::Value* value) const;

  // Whether a constant is a bias, and how long it is.
  bool is_bias(const ort::TypeAndShape& constant) const;
  std::size_t bias_bytes() const;

  // The first output of the node. Throws InvalidArgument for wrong shapes. A norm, and all of the epilogue but its
  // bias, are for activations of float32.
  NBitsOutput compute(ort::KernelContext* context, const ort::Value* a, const NBitsWeight& weight, const RmsNorm& norm,
                      const NBitsEpilogue& epilogue, const Parallel& pool) const;

  [[noreturn]] void reject(const std::string& what) const { throw ort::InvalidArgument(label_ + ": " + what); }

 private:
  std::string attributes_text() const;
  const void* checked(const ort::Value* value, const char* name, const std::vector<std::int64_t>& shape) const;
  const float* alike(const ort::Value* value, const std::vector<std::int64_t>& shape, const char* met) const;
  void multiply(const NBitsProblem& problem, const Parallel& pool) const;
  void multiply_halves(const void* a, const void* bias, void* y, NBitsProblem problem, const Parallel& pool) const;

  const ort::Api& api_;
  std::string label_;
  NBitsAttributes attributes_;
  NBitsTypes types_;
  Isa isa_;
};

}  // namespace onnxpress
