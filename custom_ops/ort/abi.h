// The slice of ONNX Runtime's C ABI in use, declared without its headers.
//
// OrtApi is a table of functions whose slots never move, so a function is its slot and its signature. Slots are those
// of API version 23 (ONNX Runtime 1.23). tests/custom_ops/test_ort_abi.py compares them with the official headers
// where those are installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxpress::ort {

inline constexpr std::uint32_t kApiVersion = 23;

// Opaque to us.
struct Status;
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct OpAttr;
struct SessionOptions;
struct CustomOpDomain;
struct CustomOp;
struct Api;
struct EpApi;
struct ModelEditorApi;
struct Graph;
struct Node;
struct ValueInfo;
struct TypeInfo;
struct KeyValuePairs;
struct HardwareDevice;
struct Logger;

struct ApiBase {
  const Api* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };

enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBFloat16 = 16,
  kFloat8E4M3FN = 17,
  kFloat8E5M2 = 19,
  kUint4 = 21,
  kInt4 = 22,
  kFloat4E2M1 = 23
};

enum AttrType : int { kAttrInt = 1, kAttrInts = 2, kAttrFloat = 3, kAttrString = 5 };

enum HardwareType : int { kCpu = 0 };

enum LogSeverity : int { kVerbose = 0, kInfo = 1, kWarning = 2 };

enum Characteristic : int { kRequired = 0, kOptional = 1 };

// X(slot, name, parameters); every function returns Status* but those of the second list.
#define ONNXPRESS_ORT_API(X)                                                                                           \
  X(26, CreateCustomOpDomain, (const char* domain, CustomOpDomain** out))                                              \
  X(27, CustomOpDomain_Add, (CustomOpDomain * domain, const CustomOp* op))                                             \
  X(28, AddCustomOpDomain, (SessionOptions * options, CustomOpDomain * domain))                                        \
  X(51, GetTensorMutableData, (Value * value, void** out))                                                             \
  X(55, CastTypeInfoToTensorInfo, (const TypeInfo* info, const TensorInfo** out))                                      \
  X(57, CreateTensorTypeAndShapeInfo, (TensorInfo * *out))                                                             \
  X(58, SetTensorElementType, (TensorInfo * info, ElementType type))                                                   \
  X(59, SetDimensions, (TensorInfo * info, const std::int64_t* dims, std::size_t count))                               \
  X(60, GetTensorElementType, (const TensorInfo* info, ElementType* out))                                              \
  X(61, GetDimensionsCount, (const TensorInfo* info, std::size_t* out))                                                \
  X(62, GetDimensions, (const TensorInfo* info, std::int64_t* dims, std::size_t count))                                \
  X(63, GetSymbolicDimensions, (const TensorInfo* info, const char** names, std::size_t count))                        \
  X(65, GetTensorTypeAndShape, (const Value* value, TensorInfo** out))                                                 \
  X(85, KernelInfoGetAttribute_float, (const KernelInfo* info, const char* name, float* out))                          \
  X(86, KernelInfoGetAttribute_int64, (const KernelInfo* info, const char* name, std::int64_t* out))                   \
  X(87, KernelInfoGetAttribute_string, (const KernelInfo* info, const char* name, char* out, std::size_t* size))       \
  X(88, KernelContext_GetInputCount, (const KernelContext* context, std::size_t* out))                                 \
  X(90, KernelContext_GetInput, (const KernelContext* context, std::size_t index, const Value** out))                  \
  X(91, KernelContext_GetOutput,                                                                                       \
    (KernelContext * context, std::size_t index, const std::int64_t* dims, std::size_t count, Value** out))            \
  X(211, CreateOpAttr, (const char* name, const void* data, int count, AttrType type, OpAttr** out))                   \
  X(230, KernelInfo_GetInputCount, (const KernelInfo* info, std::size_t* out))                                         \
  X(237, HasSessionConfigEntry, (const SessionOptions* options, const char* key, int* out))                            \
  X(238, GetSessionConfigEntry, (const SessionOptions* options, const char* key, char* value, std::size_t* size))      \
  X(244, KernelInfo_GetNodeName, (const KernelInfo* info, char* out, std::size_t* size))                               \
  X(247, Logger_LogMessage,                                                                                            \
    (const Logger* logger, LogSeverity severity, const char* message, const char* file, int line,                      \
     const char* function))                                                                                            \
  X(249, KernelInfoGetConstantInput_tensor,                                                                            \
    (const KernelInfo* info, std::size_t index, int* is_constant, const Value** out))                                  \
  X(267, ShapeInferContext_GetInputCount, (const ShapeInferContext* context, std::size_t* out))                        \
  X(268, ShapeInferContext_GetInputTypeShape, (const ShapeInferContext* context, std::size_t index, TensorInfo** out)) \
  X(269, ShapeInferContext_GetAttribute, (const ShapeInferContext* context, const char* name, const OpAttr** out))     \
  X(270, ShapeInferContext_SetOutputTypeShape,                                                                         \
    (const ShapeInferContext* context, std::size_t index, const TensorInfo* info))                                     \
  X(271, SetSymbolicDimensions, (TensorInfo * info, const char** names, std::size_t count))                            \
  X(272, ReadOpAttr, (const OpAttr* attr, AttrType type, void* data, std::size_t bytes, std::size_t* out))             \
  X(274, KernelContext_ParallelFor,                                                                                    \
    (const KernelContext* context, void (*task)(void*, std::size_t), std::size_t count, std::size_t batches,           \
     void* arg))                                                                                                       \
  X(289, GetValueInfoName, (const ValueInfo* value, const char** out))                                                 \
  X(290, GetValueInfoTypeInfo, (const ValueInfo* value, const TypeInfo** out))                                         \
  X(326, ValueInfo_GetInitializerValue, (const ValueInfo* value, const Value** out))                                   \
  X(331, ValueInfo_IsConstantInitializer, (const ValueInfo* value, bool* out))                                         \
  X(332, ValueInfo_IsFromOuterScope, (const ValueInfo* value, bool* out))                                              \
  X(334, Graph_GetModelPath, (const Graph* graph, const char** out))                                                   \
  X(340, Graph_GetNumOutputs, (const Graph* graph, std::size_t* out))                                                  \
  X(341, Graph_GetOutputs, (const Graph* graph, const ValueInfo** outputs, std::size_t count))                         \
  X(344, Graph_GetNumNodes, (const Graph* graph, std::size_t* out))                                                    \
  X(345, Graph_GetNodes, (const Graph* graph, const Node** nodes, std::size_t count))                                  \
  X(346, Graph_GetParentNode, (const Graph* graph, const Node** out))                                                  \
  X(349, Node_GetName, (const Node* node, const char** out))                                                           \
  X(350, Node_GetOperatorType, (const Node* node, const char** out))                                                   \
  X(351, Node_GetDomain, (const Node* node, const char** out))                                                         \
  X(353, Node_GetNumInputs, (const Node* node, std::size_t* out))                                                      \
  X(354, Node_GetInputs, (const Node* node, const ValueInfo** inputs, std::size_t count))                              \
  X(355, Node_GetNumOutputs, (const Node* node, std::size_t* out))                                                     \
  X(356, Node_GetOutputs, (const Node* node, const ValueInfo** outputs, std::size_t count))                            \
  X(357, Node_GetNumImplicitInputs, (const Node* node, std::size_t* out))                                              \
  X(358, Node_GetImplicitInputs, (const Node* node, const ValueInfo** inputs, std::size_t count))                      \
  X(361, Node_GetAttributeByName, (const Node* node, const char* name, const OpAttr** out))                            \
  X(367, Node_GetGraph, (const Node* node, const Graph** out))                                                         \
  X(379, GetSessionOptionsConfigEntries, (const SessionOptions* options, KeyValuePairs** out))

#define ONNXPRESS_ORT_API_OTHER(X)                                                                          \
  X(0, CreateStatus, Status*, (ErrorCode code, const char* message))                                        \
  X(2, GetErrorMessage, const char*, (const Status* status))                                                \
  X(93, ReleaseStatus, void, (Status * status))                                                             \
  X(99, ReleaseTensorTypeAndShapeInfo, void, (TensorInfo * info))                                           \
  X(101, ReleaseCustomOpDomain, void, (CustomOpDomain * domain))                                            \
  X(212, ReleaseOpAttr, void, (OpAttr * attr))                                                              \
  X(291, GetModelEditorApi, const ModelEditorApi*, ())                                                      \
  X(298, GetKeyValuePairs, void,                                                                            \
    (const KeyValuePairs* pairs, const char* const** keys, const char* const** values, std::size_t* count)) \
  X(300, ReleaseKeyValuePairs, void, (KeyValuePairs * pairs))                                               \
  X(307, HardwareDevice_Type, HardwareType, (const HardwareDevice* device))                                 \
  X(317, GetEpApi, const EpApi*, ())

#define ONNXPRESS_SLOT(number, name, parameters) inline constexpr std::size_t k##name = number;
#define ONNXPRESS_SLOT_OTHER(number, name, result, parameters) inline constexpr std::size_t k##name = number;
namespace slots {
ONNXPRESS_ORT_API(ONNXPRESS_SLOT)
ONNXPRESS_ORT_API_OTHER(ONNXPRESS_SLOT_OTHER)
}  // namespace slots
#undef ONNXPRESS_SLOT
#undef ONNXPRESS_SLOT_OTHER

// OrtApi as the table it is: api->CreateStatus(...) calls slot 0.
struct Api {
  const void* function(std::size_t slot) const { return reinterpret_cast<const void* const*>(this)[slot]; }

#define ONNXPRESS_CALL(number, name, parameters)                                     \
  template <class... Args>                                                           \
  Status* name(Args... args) const {                                                 \
    using Function = Status*(*)parameters;                                           \
    return reinterpret_cast<Function>(const_cast<void*>(function(number)))(args...); \
  }
#define ONNXPRESS_CALL_OTHER(number, name, result, parameters)                       \
  template <class... Args>                                                           \
  result name(Args... args) const {                                                  \
    using Function = result(*) parameters;                                           \
    return reinterpret_cast<Function>(const_cast<void*>(function(number)))(args...); \
  }
  ONNXPRESS_ORT_API(ONNXPRESS_CALL)
  ONNXPRESS_ORT_API_OTHER(ONNXPRESS_CALL_OTHER)
#undef ONNXPRESS_CALL
#undef ONNXPRESS_CALL_OTHER
};

// OrtCustomOp of API version 23, in its order.
struct CustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, std::size_t);
  std::size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, std::size_t);
  std::size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, std::size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, std::size_t);
  int (*GetInputMemoryType)(const CustomOp*, std::size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  std::size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  std::size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // namespace onnxpress::ort
