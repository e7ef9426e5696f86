#include "addend.h"

namespace onnxpress {

std::optional<Addend> find_addend(const Claims& claims, const GraphValue& product) {
  const ort::Node* reader = claims.graph.only_reader(product);
  if (reader == nullptr || !claims.is_free(reader)) return std::nullopt;
  const GraphNode add(claims.api, reader);
  if (!add.is("Add")) return std::nullopt;
  const GraphValue first = add.required(0, "A");
  return Addend{reader, first.name() == product.name() ? add.required(1, "B") : first};
}

}  // namespace onnxpress
