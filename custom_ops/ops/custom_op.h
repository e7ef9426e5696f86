// What custom ops whose first output is the product of A have in common.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/matmul_nbits.h"
#include "ort/abi.h"
#include "ort/ort.h"

namespace onnxpress {

// What messages about a node begin with.
std::string label_of(const ort::Api& api, const ort::KernelInfo* info, const char* op);

// Attributes of a node: a number, none where it is absent, and a text, empty where it is.
std::optional<std::int64_t> number_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name);
std::string text_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name);
std::optional<float> float_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name);
// Throws InvalidArgument, with the label, where it is absent.
std::int64_t required_attribute(const ort::Api& api, const ort::KernelInfo* info, const std::string& label,
                                const char* name);

// An input where it is a constant, else null.
const ort::Value* constant_input(const ort::Api& api, const ort::KernelInfo* info, std::size_t index);

// The data of a tensor of this type and shape; `name` is the input's. Throws InvalidArgument, with the label, where it
// is another.
const void* checked_data(const ort::Api& api, const std::string& label, const char* name, const ort::Value* value,
                         ort::ElementType element, const std::vector<std::int64_t>& shape);

// "relu", "gelu" or "gelu_tanh"; none of other names.
std::optional<Activation> activation_named(const std::string& name);

// Shape of the output: that of A, with the last size replaced by the attribute N unless it `keeps` it. Names of
// symbolic sizes survive. Its type is that of A where none is given.
void infer_shape(const ort::Api& api, ort::ShapeInferContext* context, std::optional<ort::ElementType> type,
                 bool keeps = false);

// All but names, types, characteristics of inputs and what runs.
void set_common(ort::CustomOp& op);

// An op for one combination of types. A Definition has
//   Types: those of inputs and output;
//   Kernel: made of (api, info, types), with compute(context);
//   kName, kInputs, kRequired: its name, how many inputs it has, and how many of them a node must have;
//   input_type(types, index), output_type(types);
//   inferred_type(api, context): the type of the output where it is not that of A;
//   kOutputs: how many outputs it has; those behind the first are optional, of the same type, and have no known shape;
//   kKeepsShape: whether the output has the shape of A.
template <class Definition>
struct Op : ort::CustomOp {
  const ort::Api* api;  // what runs and what infers shapes gets none
  typename Definition::Types types;

  static const Op& of(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }
};

template <class Definition>
struct OpKernel {
  const ort::Api& api;
  const typename Definition::Kernel kernel;
};

template <class Definition>
Op<Definition> make_op(const ort::Api& api, const typename Definition::Types& types, bool infers_shapes) {
  using Made = Op<Definition>;
  using Kernel = OpKernel<Definition>;
  Made op{};
  set_common(op);
  op.api = &api;
  op.types = types;
  op.GetName = [](const ort::CustomOp*) { return Definition::kName; };
  op.GetInputType = [](const ort::CustomOp* self, std::size_t index) {
    return Definition::input_type(Made::of(self).types, index);
  };
  op.GetInputTypeCount = [](const ort::CustomOp*) -> std::size_t { return Definition::kInputs; };
  op.GetOutputType = [](const ort::CustomOp* self, std::size_t) {
    return Definition::output_type(Made::of(self).types);
  };
  op.GetInputCharacteristic = [](const ort::CustomOp*, std::size_t index) {
    return index >= Definition::kRequired ? ort::kOptional : ort::kRequired;
  };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> std::size_t { return Definition::kOutputs; };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, std::size_t index) {
    return index == 0 ? ort::kRequired : ort::kOptional;
  };
  op.CreateKernelV2 = [](const ort::CustomOp* self, const ort::Api* given, const ort::KernelInfo* info, void** kernel) {
    return ort::guarded(*given, [&] { *kernel = new Kernel{*given, {*given, info, Made::of(self).types}}; });
  };
  op.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) {
    const auto& made = *static_cast<const Kernel*>(kernel);
    return ort::guarded(made.api, [&] { made.kernel.compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  if (infers_shapes) {
    op.InferOutputShapeFn = [](const ort::CustomOp* self, ort::ShapeInferContext* context) {
      const ort::Api& known = *Made::of(self).api;
      return ort::guarded(known, [&] {
        infer_shape(known, context, Definition::inferred_type(known, context), Definition::kKeepsShape);
      });
    };
  }
  return op;
}

// One op for each combination of types; they live as long as the process.
template <class Definition>
std::vector<const ort::CustomOp*> make_ops(const ort::Api& api, const std::vector<typename Definition::Types>& all,
                                           bool infers_shapes) {
  std::vector<const ort::CustomOp*> ops;
  // Never destroyed: sessions may outlive the library's unregistration.
  for (const auto& types : all) ops.push_back(new Op<Definition>(make_op<Definition>(api, types, infers_shapes)));
  return ops;
}

}  // namespace onnxpress
