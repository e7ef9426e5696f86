// Which kernels run on an instruction set: the first in order of preference whose needs it meets.
#pragma once

#include <tuple>

#include "kernels/cpu_isa.h"

namespace onnxpress {

struct AttentionKernels;
struct BlockSparseKernels;
struct EncoderKernels;
struct Int8Kernels;
struct MiniFloatBFloat16Kernels;
struct MiniFloatKernels;
struct NBitsBFloat16Kernels;
struct NBitsFloatKernels;
struct NBitsInt8Kernels;
struct QuantizeKernels;

// The kernels that are compiled for an instruction set; null where it gains nothing over those of another.
using KernelTable =
    std::tuple<const AttentionKernels*, const BlockSparseKernels*, const EncoderKernels*, const Int8Kernels*,
               const MiniFloatBFloat16Kernels*, const MiniFloatKernels*, const NBitsBFloat16Kernels*,
               const NBitsFloatKernels*, const NBitsInt8Kernels*, const QuantizeKernels*>;

struct InstructionSet {
  const char* name;
  unsigned needs;  // features of the CPU, one a bit
  KernelTable kernels;

  constexpr bool runs_with(unsigned features) const { return (needs & ~features) == 0; }
};

extern const InstructionSet kInstructionSets[];

inline const InstructionSet& instruction_set(Isa isa) { return kInstructionSets[static_cast<int>(isa)]; }

// The best kernels of a kind that run on `isa` and for which `suits` holds; null where there are none.
template <class Kernels, class Suits>
const Kernels* find_kernels(Isa isa, const Suits& suits) {
  const unsigned features = instruction_set(isa).needs;
  for (int row = static_cast<int>(isa); row >= 0; --row) {
    const InstructionSet& set = instruction_set(static_cast<Isa>(row));
    const Kernels* kernels = std::get<const Kernels*>(set.kernels);
    if (kernels != nullptr && set.runs_with(features) && suits(*kernels)) return kernels;
  }
  return nullptr;
}

// Of a kind that has portable kernels, which suit everything.
template <class Kernels>
const Kernels& best_kernels(Isa isa) {
  return *find_kernels<Kernels>(isa, [](const Kernels&) { return true; });
}

}  // namespace onnxpress
