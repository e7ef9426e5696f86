#include "plan.h"

#include <algorithm>

#include "attention_plan.h"
#include "block_sparse.h"
#include "cached_attention.h"
#include "dequantized_matmul.h"
#include "dynamic_matmul.h"
#include "gather.h"
#include "int8_plan.h"
#include "matmul_nbits.h"
#include "minifloat.h"
#include "multi_head_attention.h"
#include "nbits_plan.h"
#include "qdq_matmul.h"

namespace onnxpress {
namespace {

// Where the memory is the limit, or nobody else has a kernel.
bool is_always_faster(const Plan&, Isa) { return true; }

}  // namespace

CompiledNode::CompiledNode(const ort::Api& api) : NodeComputeInfo{}, api_(api) {
  ort_version_supported = ort::kApiVersion;
  CreateState = [](ort::NodeComputeInfo* self, ort::NodeComputeContext*, void** state) -> ort::Status* {
    *state = self;  // all that a run needs is constant
    return nullptr;
  };
  Compute = [](ort::NodeComputeInfo* self, void*, ort::KernelContext* context) {
    const auto& compiled = *static_cast<const CompiledNode*>(self);
    return ort::guarded(compiled.api_, [&] { compiled.run(context); });
  };
  ReleaseState = [](ort::NodeComputeInfo*, void*) {};
}

const ort::Value* CompiledNode::input(ort::KernelContext* context, std::size_t index) const {
  const ort::Value* value = nullptr;
  ort::check(api_, api_.KernelContext_GetInput(context, index, &value));
  return value;
}

bool Claims::is_free(const ort::Node* node) const { return std::find(taken.begin(), taken.end(), node) == taken.end(); }

std::optional<GraphNode> Claims::free_reader(const GraphValue& value) const {
  const ort::Node* reader = graph.only_reader(value);
  if (reader == nullptr || !is_free(reader)) return std::nullopt;
  return GraphNode(api, reader);
}

std::optional<GraphNode> Claims::free_source(const GraphValue& value, const GraphNode& reader) const {
  const ort::Node* producer = graph.producer(value);
  if (producer == nullptr || !is_free(producer) || graph.only_reader(value) != reader.get()) return std::nullopt;
  return GraphNode(api, producer);
}

const std::vector<Family>& families() {
  static const std::vector<Family>& all =
      *new std::vector<Family>{{"matmul_nbits", plan_matmul_nbits, is_nbits_faster, load_nbits},
                               {"qdq_matmul", plan_qdq_matmul, is_int8_faster, load_int8},
                               {"dequantized_matmul", plan_dequantized_matmul, is_nbits_faster, load_nbits},
                               {"dynamic_matmul", plan_dynamic_matmul, is_int8_faster, load_int8},
                               {"gather", plan_gather, is_always_faster, nullptr},
                               {"block_sparse", plan_block_sparse, is_always_faster, load_block_sparse},
                               {"cached_attention", plan_cached_attention, is_attention_faster, nullptr},
                               {"attention", plan_multi_head_attention, is_multi_head_attention_faster, nullptr},
                               {"minifloat", plan_minifloat, is_always_faster, load_nbits}};
  return all;
}

}  // namespace onnxpress
