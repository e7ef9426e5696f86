// QuantizeLinear, DequantizeLinear and what stands between them and a product.
#pragma once

#include <optional>
#include <vector>

#include "graph.h"
#include "kernels/matmul_int8.h"
#include "plan.h"

namespace onnxpress {

bool is_one_number(const ort::TypeAndShape& tensor);

// The DequantizeLinear that computes the value, null where it is another node.
std::optional<GraphNode> dequantized_by(const Claims& claims, const GraphValue& value);

// The DequantizeLinear behind the second input of a product, through a Transpose, if nothing else reads them; they go
// to the front of `nodes`.
std::optional<GraphNode> find_weight(const Claims& claims, const GraphNode& product,
                                     std::vector<const ort::Node*>& nodes, bool& transposed);

// Whether a Gemm is its first input times its second, turned or not, plus its third.
bool is_plain_gemm(const GraphNode& node);

// The format of a QuantizeLinear or a DequantizeLinear with codes of this type; none where it is not one constant
// float32 for all of 8 bits.
std::optional<Int8Format> read_format(const ort::Api& api, const GraphNode& node, ort::ElementType codes);

// The values of a bias [N]: a constant of float32, or one of int32 behind a DequantizeLinear, which goes to `nodes`.
// None where it is anything else.
std::optional<std::vector<float>> read_bias(const Claims& claims, const GraphValue& value, std::int64_t N,
                                            std::vector<const ort::Node*>& nodes);

}  // namespace onnxpress
