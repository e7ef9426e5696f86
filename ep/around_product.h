// What stands around a product of a transformer: the norm of its rows, a gated linear unit, the residual that it is
// added to.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "activations.h"
#include "graph.h"
#include "kernels/matmul_nbits.h"
#include "plan.h"

namespace onnxpress {

// By the root mean square of the last axis, in float32.
struct FoundNorm {
  const ort::Node* node;
  GraphValue input;
  const ort::Value* scale;  // float32 [K]
  float epsilon;
};

// The norm that computes `value`, which `reader` alone reads.
std::optional<FoundNorm> find_norm(const Claims& claims, const GraphValue& value, const GraphNode& reader,
                                   std::int64_t K);

// The halves of the last axis, of which one gets an activation and is multiplied by the other.
struct FoundGlu {
  Glu half;
  Activation activation;
  std::vector<const ort::Node*> nodes;
};

// Where the only reader of a value of N columns begins a gated linear unit.
std::optional<FoundGlu> find_glu(const Claims& claims, const GraphValue& value, std::int64_t N);

// The other value, of the same shape for certain, where the only reader of a float32 value is a sum of the two.
struct FoundAddend {
  const ort::Node* node;
  GraphValue addend;
};

std::optional<FoundAddend> find_residual(const Claims& claims, const GraphValue& value);

}  // namespace onnxpress
