// onnxpress::BlockSparseMatMul.
#pragma once

#include <memory>

#include "plan.h"

namespace onnxpress {

std::unique_ptr<Plan> plan_block_sparse(const Claims& claims, const ort::Node* node);

class SavedNode;
std::unique_ptr<CompiledNode> load_block_sparse(SavedNode& saved);

}  // namespace onnxpress
