#include "ops/nbits_kernel.h"

#include <utility>

#include "ops/custom_op.h"

namespace onnxpress {
namespace {

enum Input : std::size_t { kA, kB, kScales };

}  // namespace

NBitsKernel::NBitsKernel(const ort::Api& api, const ort::KernelInfo* info, NBitsProduct product, Inputs inputs)
    : api_(api), product_(std::move(product)), at_(inputs) {
  std::size_t count = 0;
  ort::check(api_, api_.KernelInfo_GetInputCount(info, &count));
  if (count <= kScales) product_.reject("needs at least the inputs A, B and scales");
  const ort::Value* codes = constant_input(api_, info, kB);
  const ort::Value* scales = constant_input(api_, info, kScales);
  const ort::Value* zero_points = constant_input(api_, info, at_.zero_points);
  // Zero points that are present but computed at run time make the weight so too; whether they are present shows only
  // then.
  maybe_more_zero_points_ = count > at_.zero_points && zero_points == nullptr;
  if (codes != nullptr && scales != nullptr) weight_ = pack(product_.weight(codes, scales, zero_points), Sequential());
}

void NBitsKernel::compute(ort::KernelContext* context) const {
  const ort::IntraOpPool pool(api_, context);
  std::size_t inputs = 0;
  ort::check(api_, api_.KernelContext_GetInputCount(context, &inputs));
  const auto input = [&](std::size_t index) {
    const ort::Value* value = nullptr;
    if (index < inputs) ort::check(api_, api_.KernelContext_GetInput(context, index, &value));
    return value;
  };
  // A weight that is no constant (one of an outer graph, say) is packed on every call.
  PackedWeight packed;
  const NBitsWeight* weight = &weight_.view;
  const ort::Value* zero_points = maybe_more_zero_points_ ? input(at_.zero_points) : nullptr;
  if (weight_.memory.bytes == nullptr || zero_points != nullptr) {
    packed = pack(product_.weight(input(kB), input(kScales), input(at_.zero_points)), pool);
    weight = &packed.view;
  }
  NBitsEpilogue epilogue;
  epilogue.bias = product_.bias(input(at_.bias));
  product_.compute(context, input(kA), *weight, {}, epilogue, pool);
}

}  // namespace onnxpress
