// Entry point of the custom-op library.
#include <mutex>
#include <string>

#include "kernels/cpu_isa.h"
#include "ops/matmul_nbits_op.h"
#include "ort/ort.h"

namespace {

using namespace onnxpress;

// One domain for the process, never released: session options keep pointers to it.
ort::CustomOpDomain* domain(const ort::Api& api) {
  static std::mutex mutex;
  static ort::CustomOpDomain* made = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (made == nullptr) {
    ort::CustomOpDomain* fresh = nullptr;
    ort::check(api, api.CreateCustomOpDomain("onnxpress", &fresh));
    for (const ort::CustomOp* op : matmul_nbits_ops(api)) ort::check(api, api.CustomOpDomain_Add(fresh, op));
    made = fresh;
  }
  return made;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options,
                                                                                 const ort::ApiBase* base) {
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // Without a table there is no status to return; an older one can carry the message.
    const ort::Api* older = base->GetApi(1);
    const std::string message =
        std::string("onnxpress needs ONNX Runtime 1.23 or newer, this is ") + base->GetVersionString();
    return older != nullptr ? older->CreateStatus(ort::kFail, message.c_str()) : nullptr;
  }
  return ort::guarded(*api, [&] {
    chosen_isa();  // a wrong ONNXPRESS_ISA is an error here, not in the middle of a session
    ort::check(*api, api->AddCustomOpDomain(options, domain(*api)));
  });
}
