// A little C++ over the C ABI: statuses as exceptions inside, exceptions as statuses at the boundary.
#pragma once

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/parallel.h"
#include "ort/abi.h"

namespace onnxpress::ort {

// Bad input, as against a failure of ours.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

inline void check(const Api& api, Status* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

// For a runtime without our version of the table: an older table can carry the message.
inline Status* too_old(const ApiBase& base) {
  const Api* older = base.GetApi(1);
  const std::string message =
      std::string("onnxpress needs ONNX Runtime 1.23 or newer, this is ") + base.GetVersionString();
  return older != nullptr ? older->CreateStatus(kFail, message.c_str()) : nullptr;
}

// Whether the runtime is the oldest that we run on, faults of which newer ones do not have.
inline bool is_1_23(const ApiBase& base) { return std::string(base.GetVersionString()).rfind("1.23.", 0) == 0; }

// Runs `body`; no exception crosses the C boundary.
template <class Body>
Status* guarded(const Api& api, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const InvalidArgument& error) {
    return api.CreateStatus(kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(kFail, error.what());
  } catch (...) {
    return api.CreateStatus(kFail, "onnxpress: unknown error");
  }
}

struct TypeAndShape {
  ElementType type = kUndefined;
  std::vector<std::int64_t> dims;
};

inline TypeAndShape read(const Api& api, const TensorInfo* info) {
  TypeAndShape result;
  std::size_t rank = 0;
  check(api, api.GetTensorElementType(info, &result.type));
  check(api, api.GetDimensionsCount(info, &rank));
  result.dims.resize(rank);
  check(api, api.GetDimensions(info, result.dims.data(), rank));
  return result;
}

inline TypeAndShape type_and_shape(const Api& api, const Value* value) {
  TensorInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &info));
  struct Release {
    const Api& api;
    TensorInfo* info;
    ~Release() { api.ReleaseTensorTypeAndShapeInfo(info); }
  } release{api, info};
  return read(api, info);
}

inline const void* data(const Api& api, const Value* value) {
  void* pointer = nullptr;
  check(api, api.GetTensorMutableData(const_cast<Value*>(value), &pointer));
  return pointer;
}

inline std::string to_string(const std::vector<std::int64_t>& dims) {
  std::string text = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) text += (i != 0 ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

// ONNX Runtime's own intra-op pool.
class IntraOpPool final : public Parallel {
 public:
  IntraOpPool(const Api& api, const KernelContext* context) : api_(api), context_(context) {}

  void run(std::size_t count, void (*task)(void*, std::size_t), void* arg) const override {
    if (count == 1) return task(arg, 0);
    // As many batches as tasks: each thread fetches the next one when it is done, so a slow core holds up no other.
    check(api_, api_.KernelContext_ParallelFor(context_, task, count, count, arg));
  }

 private:
  const Api& api_;
  const KernelContext* context_;
};

}  // namespace onnxpress::ort
