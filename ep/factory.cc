// Entry points of the plugin execution provider.
#include <cstdint>
#include <string>

#include "ep.h"
#include "ort/ort.h"

namespace {

using namespace onnxpress;

struct Factory : ort::EpFactory {
  Factory(const ort::Api& ort_api, bool repeats_names) : EpFactory{}, api(ort_api), repeats_names(repeats_names) {
    ort_version_supported = ort::kApiVersion;
    GetName = [](const ort::EpFactory*) { return kEpName; };
    GetVendor = [](const ort::EpFactory*) { return "onnxpress"; };
    GetVendorId = [](const ort::EpFactory*) -> std::uint32_t { return 0; };
    GetVersion = [](const ort::EpFactory*) { return ONNXPRESS_VERSION; };
    GetSupportedDevices = [](ort::EpFactory* self, const ort::HardwareDevice* const* devices, std::size_t count,
                             ort::EpDevice** out, std::size_t most, std::size_t* found) {
      const ort::Api& ort_api = static_cast<Factory*>(self)->api;
      *found = 0;
      return ort::guarded(ort_api, [&] {
        for (std::size_t i = 0; i < count && *found < most; ++i) {
          if (ort_api.HardwareDevice_Type(devices[i]) != ort::kCpu) continue;
          ort::check(ort_api, ort_api.GetEpApi()->CreateEpDevice(self, devices[i], &out[*found]));
          ++*found;
        }
      });
    };
    CreateEp = [](ort::EpFactory* self, const ort::HardwareDevice* const*, const ort::KeyValuePairs* const*,
                  std::size_t, const ort::SessionOptions* options, const ort::Logger* logger, ort::Ep** out) {
      const auto& factory = *static_cast<Factory*>(self);
      return ort::guarded(factory.api, [&] {
        *out = create_ep(factory.api, read_options(factory.api, options), logger, factory.repeats_names);
      });
    };
    ReleaseEp = [](ort::EpFactory*, ort::Ep* ep) { release_ep(ep); };
    IsStreamAware = [](const ort::EpFactory*) { return false; };
    CreateAllocator = [](ort::EpFactory*, const ort::MemoryInfo*, const ort::KeyValuePairs*,
                         ort::Allocator** out) -> ort::Status* {
      *out = nullptr;  // ONNX Runtime's own
      return nullptr;
    };
    ReleaseAllocator = [](ort::EpFactory*, ort::Allocator*) {};
    CreateDataTransfer = [](ort::EpFactory*, ort::DataTransferImpl** out) -> ort::Status* {
      *out = nullptr;
      return nullptr;
    };
  }

  const ort::Api& api;
  const bool repeats_names;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* CreateEpFactories(const char*, const ort::ApiBase* base,
                                                                                 const ort::Logger*,
                                                                                 ort::EpFactory** factories,
                                                                                 std::size_t most, std::size_t* made) {
  *made = 0;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return ort::too_old(*base);
  return ort::guarded(*api, [&] {
    if (most == 0) throw ort::InvalidArgument(std::string(kEpName) + ": no room for a factory");
    // One for the process, never destroyed: sessions may outlive the registration.
    static Factory& factory = *new Factory(*api, ort::is_1_23(*base));
    factories[0] = &factory;
    *made = 1;
  });
}

extern "C" __attribute__((visibility("default"))) ort::Status* ReleaseEpFactory(ort::EpFactory*) { return nullptr; }
