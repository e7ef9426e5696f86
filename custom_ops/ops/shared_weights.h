// One packed copy of equal weights for all sessions of a process.
#pragma once

#include <utility>

#include "kernels/blob.h"

namespace onnxpress {

// `bytes`, or the same bytes that another session holds. They live as long as some session holds them.
Blob share(Blob bytes);

template <class Packed>
Packed share(Packed packed) {
  packed.memory = share(std::move(packed.memory));
  packed.view = view(packed.layout, packed.memory.data());
  return packed;
}

}  // namespace onnxpress
