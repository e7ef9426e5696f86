#include "shared_weights.h"

#include <cstring>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace onnxpress {
namespace {

bool same(const PackedWeight& a, const PackedWeight& b) {
  const NBitsWeight &v = a.view, &w = b.view;
  const bool same_layout = v.K == w.K && v.N == w.N && v.bits == w.bits && v.block_size == w.block_size &&
                           (v.half_scales == nullptr) == (w.half_scales == nullptr) &&
                           (v.bfloat16_scales == nullptr) == (w.bfloat16_scales == nullptr) &&
                           (v.zero_points == nullptr) == (w.zero_points == nullptr) &&
                           (v.float_zero_points == nullptr) == (w.float_zero_points == nullptr);
  return same_layout && a.bytes == b.bytes && std::memcmp(a.memory.get(), b.memory.get(), a.bytes) == 0;
}

struct Table {
  std::mutex mutex;
  // By hash of the bytes. The bytes themselves are compared, so that no collision, made or met, mixes up two weights.
  std::unordered_multimap<std::size_t, std::weak_ptr<const PackedWeight>> weights;
};

}  // namespace

std::shared_ptr<const PackedWeight> share(PackedWeight packed) {
  static Table& table = *new Table;  // never destroyed: sessions may outlive the registration
  const auto* bytes = reinterpret_cast<const char*>(packed.memory.get());
  const std::size_t hash = std::hash<std::string_view>()({bytes, packed.bytes});
  const std::lock_guard<std::mutex> lock(table.mutex);
  for (auto at = table.weights.begin(); at != table.weights.end();) {
    at = at->second.expired() ? table.weights.erase(at) : std::next(at);
  }
  const auto [begin, end] = table.weights.equal_range(hash);
  for (auto at = begin; at != end; ++at) {
    const std::shared_ptr<const PackedWeight> known = at->second.lock();
    if (known != nullptr && same(*known, packed)) return known;
  }
  auto shared = std::make_shared<const PackedWeight>(std::move(packed));
  table.weights.emplace(hash, shared);
  return shared;
}

}  // namespace onnxpress
