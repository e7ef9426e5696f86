#include "kernels/cpu_isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace onnxpress {
namespace {

#if defined(__x86_64__)
// Tiles of int8 and bfloat16: in the CPU, saved by the operating system, and granted to this process, which must ask
// once.
bool ask_for_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // bits of leaf 7: bfloat16, tiles, int8
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kNeeded) != kNeeded) return false;
  constexpr unsigned kSaved = 3u << 17;  // the state of tiles in XCR0
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a & kSaved) == kSaved && syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

bool has_amx() {
  static const bool granted = ask_for_amx();
  return granted;
}
#endif

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512Bf16:
      return "avx512bf16";
    case Isa::kAvx512Vbmi:
      return "avx512vbmi";
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
  // What follows may use the tables of bytes, which all CPUs with tiles have, and all with bfloat16 but Cooper Lake.
  const bool avx512vbmi = avx512vnni && __builtin_cpu_supports("avx512vbmi");
  if (avx512vbmi) isas.push_back(Isa::kAvx512Vbmi);
  if (avx512vbmi && __builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
  if (avx512vbmi && has_amx()) isas.push_back(Isa::kAmx);
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
  if (best == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512Vbmi;
#endif
  return best;
}

}  // namespace

Isa parse_isa(const std::string& name, const std::string& setting) {
  for (Isa isa : {Isa::kScalar, Isa::kNeon, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni, Isa::kAvx512Vbmi,
                  Isa::kAvx512Bf16, Isa::kAmx}) {
    if (name != isa_name(isa)) continue;
    for (Isa have : supported_isas()) {
      if (have == isa) return isa;
    }
    throw std::runtime_error(setting + name + ": this CPU lacks these instructions; best here is " +
                             isa_name(supported_isas().back()));
  }
  throw std::runtime_error(
      setting + name +
      ": unknown instruction set; use scalar, neon, avx2, avxvnni, avx512vnni, avx512vbmi, avx512bf16 or amx");
}

Isa chosen_isa() {
  const char* asked = std::getenv("ONNXPRESS_ISA");
  return asked != nullptr && *asked != '\0' ? parse_isa(asked, "ONNXPRESS_ISA=") : fastest_isa();
}

}  // namespace onnxpress
