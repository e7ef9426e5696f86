// What an Add brings to the product before it.
#pragma once

#include <optional>

#include "graph.h"
#include "plan.h"

namespace onnxpress {

struct Addend {
  const ort::Node* add;
  GraphValue value;  // the other input of the Add
};

// None where the product is read by anything but one Add that is free.
std::optional<Addend> find_addend(const Claims& claims, const GraphValue& product);

}  // namespace onnxpress
