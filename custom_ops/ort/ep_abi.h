// The structs of ONNX Runtime's plugin execution providers, of API version 23, in their order.
#pragma once

#include "ort/abi.h"

namespace onnxpress::ort {

struct EpGraphSupportInfo;
struct EpDevice;
struct NodeComputeContext;
struct MemoryInfo;
struct MemoryDevice;
struct Allocator;
struct RunOptions;
struct DataTransferImpl;
struct SyncStreamImpl;
struct Ep;
struct EpFactory;

struct NodeFusionOptions {
  std::uint32_t ort_version_supported;
  bool drop_constant_initializers;
};

struct NodeComputeInfo {
  std::uint32_t ort_version_supported;
  Status* (*CreateState)(NodeComputeInfo*, NodeComputeContext*, void**);
  Status* (*Compute)(NodeComputeInfo*, void*, KernelContext*);
  void (*ReleaseState)(NodeComputeInfo*, void*);
};

struct Ep {
  std::uint32_t ort_version_supported;
  const char* (*GetName)(const Ep*);
  Status* (*GetCapability)(Ep*, const Graph*, EpGraphSupportInfo*);
  Status* (*Compile)(Ep*, const Graph**, const Node**, std::size_t, NodeComputeInfo**, Node**);
  void (*ReleaseNodeComputeInfos)(Ep*, NodeComputeInfo**, std::size_t);
  Status* (*GetPreferredDataLayout)(Ep*, int*);
  Status* (*ShouldConvertDataLayoutForOp)(Ep*, const char*, const char*, int, int*);
  Status* (*SetDynamicOptions)(Ep*, const char* const*, const char* const*, std::size_t);
  Status* (*OnRunStart)(Ep*, const RunOptions*);
  Status* (*OnRunEnd)(Ep*, const RunOptions*, bool);
  Status* (*CreateAllocator)(Ep*, const MemoryInfo*, Allocator**);
  Status* (*CreateSyncStreamForDevice)(Ep*, const MemoryDevice*, SyncStreamImpl**);
  const char* (*GetCompiledModelCompatibilityInfo)(Ep*, const Graph*);
};

struct EpFactory {
  std::uint32_t ort_version_supported;
  const char* (*GetName)(const EpFactory*);
  const char* (*GetVendor)(const EpFactory*);
  Status* (*GetSupportedDevices)(EpFactory*, const HardwareDevice* const*, std::size_t, EpDevice**, std::size_t,
                                 std::size_t*);
  Status* (*CreateEp)(EpFactory*, const HardwareDevice* const*, const KeyValuePairs* const*, std::size_t,
                      const SessionOptions*, const Logger*, Ep**);
  void (*ReleaseEp)(EpFactory*, Ep*);
  std::uint32_t (*GetVendorId)(const EpFactory*);
  const char* (*GetVersion)(const EpFactory*);
  Status* (*ValidateCompiledModelCompatibilityInfo)(EpFactory*, const HardwareDevice* const*, std::size_t, const char*,
                                                    int*);
  Status* (*CreateAllocator)(EpFactory*, const MemoryInfo*, const KeyValuePairs*, Allocator**);
  void (*ReleaseAllocator)(EpFactory*, Allocator*);
  Status* (*CreateDataTransfer)(EpFactory*, DataTransferImpl**);
  bool (*IsStreamAware)(const EpFactory*);
  Status* (*CreateSyncStreamForDevice)(EpFactory*, const MemoryDevice*, const KeyValuePairs*, SyncStreamImpl**);
};

// A table of functions, of which a few are in use.
class Table {
 protected:
  template <class Function>
  Function slot(std::size_t number) const {
    return reinterpret_cast<Function>(const_cast<void*>(reinterpret_cast<const void* const*>(this)[number]));
  }
};

// OrtEpApi, by its slots in use.
struct EpApi : Table {
  Status* CreateEpDevice(EpFactory* factory, const HardwareDevice* device, EpDevice** out) const {
    using Function =
        Status* (*)(EpFactory*, const HardwareDevice*, const KeyValuePairs*, const KeyValuePairs*, EpDevice**);
    return slot<Function>(0)(factory, device, nullptr, nullptr, out);
  }
  Status* AddNodesToFuse(EpGraphSupportInfo* info, const Node* const* nodes, std::size_t count,
                         const NodeFusionOptions* options) const {
    using Function = Status* (*)(EpGraphSupportInfo*, const Node* const*, std::size_t, const NodeFusionOptions*);
    return slot<Function>(2)(info, nodes, count, options);
  }
};

// OrtModelEditorApi, by its slot in use.
struct ModelEditorApi : Table {
  // Takes the attributes, and sets the pointers to them to null.
  Status* CreateNode(const char* op_type, const char* domain, const char* name, const char* const* inputs,
                     std::size_t input_count, const char* const* outputs, std::size_t output_count, OpAttr** attributes,
                     std::size_t attribute_count, Node** out) const {
    using Function = Status* (*)(const char*, const char*, const char*, const char* const*, std::size_t,
                                 const char* const*, std::size_t, OpAttr**, std::size_t, Node**);
    return slot<Function>(6)(op_type, domain, name, inputs, input_count, outputs, output_count, attributes,
                             attribute_count, out);
  }
};

}  // namespace onnxpress::ort
