#include "addend.h"

namespace onnxpress {

std::optional<Addend> find_addend(const Claims& claims, const GraphValue& product) {
  const std::optional<GraphNode> add = claims.free_reader(product);
  if (!add || !add->is("Add")) return std::nullopt;
  return Addend{add->get(), add->input_beside(product)};
}

}  // namespace onnxpress
