#include "kernels/cpu_isa.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace onnxpress {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16:
      return "avx512bf16";
    case Isa::kAvx512Vnni:
      return "avx512vnni";
    case Isa::kAvxVnni:
      return "avxvnni";
    case Isa::kNeon:
      return "neon";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "scalar";
  }
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas{Isa::kScalar};
#if defined(__x86_64__)
  // The builtin also asks XGETBV whether the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2) isas.push_back(Isa::kAvx2);
  if (avx2 && __builtin_cpu_supports("avxvnni")) isas.push_back(Isa::kAvxVnni);
  const bool avx512vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  if (avx512vnni) isas.push_back(Isa::kAvx512Vnni);
  if (avx512vnni && __builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
#elif defined(__aarch64__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) isas.push_back(Isa::kNeon);
#endif
  return isas;
}

namespace {

// Intel's cores (Sapphire Rapids) begin a dot product of bfloat16 every other cycle and two multiply-adds of float32
// every cycle, which makes the latter the faster: what multiplies bfloat16 runs there only when it is asked for.
Isa fastest_isa() {
  const Isa best = supported_isas().back();
#if defined(__x86_64__)
  if (best == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512Vnni;
#endif
  return best;
}

}  // namespace

Isa parse_isa(const std::string& name) {
  for (Isa isa : {Isa::kScalar, Isa::kNeon, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni, Isa::kAvx512Bf16}) {
    if (name != isa_name(isa)) continue;
    for (Isa have : supported_isas()) {
      if (have == isa) return isa;
    }
    throw std::runtime_error("ONNXPRESS_ISA=" + name + ": this CPU lacks these instructions; best here is " +
                             isa_name(supported_isas().back()));
  }
  throw std::runtime_error("ONNXPRESS_ISA=" + name +
                           ": unknown instruction set; use scalar, neon, avx2, avxvnni, avx512vnni or avx512bf16");
}

Isa chosen_isa() {
  const char* asked = std::getenv("ONNXPRESS_ISA");
  return asked != nullptr && *asked != '\0' ? parse_isa(asked) : fastest_isa();
}

}  // namespace onnxpress
