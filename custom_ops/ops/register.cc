// Entry point of the custom-op library.
#include <mutex>
#include <string>

#include "kernels/cpu_isa.h"
#include "ops/block_sparse_op.h"
#include "ops/encoder_op.h"
#include "ops/matmul_nbits_op.h"
#include "ops/minifloat_op.h"
#include "ort/ort.h"

namespace {

using namespace onnxpress;

// One domain for the process, never released: session options keep pointers to it.
ort::CustomOpDomain* domain(const ort::Api& api, bool infers_shapes) {
  static std::mutex mutex;
  static ort::CustomOpDomain* made = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (made == nullptr) {
    ort::CustomOpDomain* fresh = nullptr;
    ort::check(api, api.CreateCustomOpDomain("onnxpress", &fresh));
    for (const auto& ops : {matmul_nbits_ops(api, infers_shapes), minifloat_ops(api, infers_shapes),
                            block_sparse_ops(api, infers_shapes), encoder_ops(api, infers_shapes)}) {
      for (const ort::CustomOp* op : ops) ort::check(api, api.CustomOpDomain_Add(fresh, op));
    }
    made = fresh;
  }
  return made;
}

// ONNX Runtime 1.23 crashes when it prepares the shape inference of a node with an absent input before a present one
// (pull request 26199 of its repository); without an inference function it takes the shapes stored in the model.
bool infers_shapes_safely(const ort::ApiBase& base) { return !ort::is_1_23(base); }

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options,
                                                                                 const ort::ApiBase* base) {
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return ort::too_old(*base);
  return ort::guarded(*api, [&] {
    chosen_isa();  // a wrong ONNXPRESS_ISA is an error here, not in the middle of a session
    ort::check(*api, api->AddCustomOpDomain(options, domain(*api, infers_shapes_safely(*base))));
  });
}
