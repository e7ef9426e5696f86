// Activations as exporters and ONNX Runtime write them: one node, or several around one value.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graph.h"
#include "kernels/matmul_nbits.h"
#include "plan.h"

namespace onnxpress {

// Nodes that compute a function of one value, which none but they read, and of which the last alone is read by others.
struct FoundActivation {
  Activation activation;
  std::vector<const ort::Node*> nodes;
  GraphNode last;
};

// The activation of `value`, if it has one.
std::optional<FoundActivation> find_activation(const Claims& claims, const GraphValue& value);

// The other factor, of the same shape for certain, where the only reader of a float32 value is a Mul of the two.
struct FoundGate {
  const ort::Node* node;
  GraphValue factor;
};
// `a` names what was multiplied by a matrix to get the value.
std::optional<FoundGate> find_gate(const Claims& claims, const GraphValue& value, const std::string& a);

}  // namespace onnxpress
