#include "kernels/cpu_isa.h"

#include <cstdlib>
#include <stdexcept>

#include "kernels/kernel_table.h"
#include "kernels/platform.h"

#if defined(__x86_64__)
#include <cpuid.h>
#define ONNXPRESS_ON_X86(...) own(__VA_ARGS__)
#else
#define ONNXPRESS_ON_X86(...) own()
#endif
#if defined(__aarch64__)
#define ONNXPRESS_ON_ARM(...) own(__VA_ARGS__)
#else
#define ONNXPRESS_ON_ARM(...) own()
#endif

namespace onnxpress {
namespace {

// What kernels need of a CPU. Features that kernels always use together are one.
enum Feature : unsigned {
  kAvx2 = 1 << 0,  // with FMA and F16C
  kAvxVnni = 1 << 1,
  kAvx512 = 1 << 2,  // F, BW, DQ and VL
  kAvx512Vnni = 1 << 3,
  kAvx512Vbmi = 1 << 4,
  kAvx512Bf16 = 1 << 5,
  kAmx = 1 << 6,  // tiles, of int8 and bfloat16
  kNeonDotProducts = 1 << 7,
  kNeonMatrices = 1 << 8,  // of int8: smmla and its kin
};

#if defined(__x86_64__)
struct CpuId {
  unsigned a = 0, b = 0, c = 0, d = 0;  // zeros where the CPU does not know the leaf
  explicit CpuId(unsigned leaf, unsigned part = 0) { __get_cpuid_count(leaf, part, &a, &b, &c, &d); }
};

// Bits are there in a register of CPUID or XCR0.
constexpr bool has(unsigned bits, unsigned in) { return (in & bits) == bits; }

// The states of registers that the operating system saves; 0 where it does not say.
unsigned saved_states() {
  if (!has(bit_OSXSAVE, CpuId(1).c)) return 0;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Not by __builtin_cpu_supports, of which some compilers' libraries know nothing.
unsigned find_x86_features() {
  constexpr unsigned kYmm = 0x6, kZmm = 0xe6, kTiles = 3u << 17;  // of XCR0
  const unsigned saved = saved_states();
  const CpuId first(1), seventh(7), more(7, 1);
  unsigned found = 0;
  const auto add = [&](Feature feature, bool is_there) { found |= is_there ? feature : 0u; };
  if (has(kYmm, saved)) {
    add(kAvx2, has(1u << 5, seventh.b) && has(bit_FMA | bit_F16C, first.c));
    add(kAvxVnni, has(1u << 4, more.a));
  }
  if (has(kZmm, saved)) {
    add(kAvx512, has(1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, seventh.b));
    add(kAvx512Vnni, has(1u << 11, seventh.c));
    add(kAvx512Vbmi, has(1u << 1, seventh.c));
    add(kAvx512Bf16, has(1u << 5, more.a));
  }
  // bfloat16, tiles, int8
  if (has(kTiles, saved)) add(kAmx, has(1u << 22 | 1u << 24 | 1u << 25, seventh.d) && allow_amx_tiles());
  return found;
}
#endif

unsigned find_features() {
#if defined(__x86_64__)
  return find_x86_features();
#else
  return (has_neon_dot_products() ? kNeonDotProducts : 0u) | (has_neon_matrices() ? kNeonMatrices : 0u);
#endif
}

unsigned cpu_features() {
  static const unsigned found = find_features();
  return found;
}

// Intel's cores (Sapphire Rapids) begin a dot product of bfloat16 every other cycle and two multiply-adds of float32
// every cycle, which makes the latter the faster: what multiplies bfloat16 runs there only when it is asked for.
unsigned slow_features() {
#if defined(__x86_64__)
  if (CpuId(0).b == signature_INTEL_ebx) return kAvx512Bf16;
#endif
  return 0;
}

template <class... Kernels>
constexpr KernelTable own(const Kernels*... kernels) {
  KernelTable table{};
  ((std::get<const Kernels*>(table) = kernels), ...);
  return table;
}

constexpr unsigned kAvx512Needs = kAvx2 | kAvx512;
constexpr unsigned kAvx512VnniNeeds = kAvx512Needs | kAvx512Vnni;
// What follows may use the tables of bytes, which all CPUs with tiles have, and all with bfloat16 but Cooper Lake.
constexpr unsigned kAvx512VbmiNeeds = kAvx512VnniNeeds | kAvx512Vbmi;

}  // namespace

// They are defined in the files compiled for the instruction set that ends their names.
extern const AttentionKernels attention_scalar, attention_avx2, attention_avx512, attention_amx;
extern const BlockSparseKernels block_sparse_scalar, block_sparse_neon, block_sparse_avx2, block_sparse_avx512vnni;
extern const EncoderKernels encoder_scalar, encoder_neon, encoder_i8mm, encoder_avx2, encoder_avxvnni, encoder_avx512,
    encoder_avx512vnni, encoder_amx;
extern const Int8Kernels int8_scalar, int8_neon, int8_i8mm, int8_avx2, int8_avxvnni, int8_avx512, int8_avx512vnni,
    int8_amx;
extern const MiniFloatBFloat16Kernels minifloat_bfloat16_avx512bf16, minifloat_bfloat16_amx;
extern const MiniFloatKernels minifloat_scalar, minifloat_neon, minifloat_avx2, minifloat_avx512, minifloat_avx512vbmi;
extern const NBitsBFloat16Kernels nbits_bfloat16_avx512bf16, nbits_bfloat16_amx;
extern const NBitsFloatKernels nbits_float_scalar, nbits_float_neon, nbits_float_avx2, nbits_float_avx512;
extern const NBitsInt8Kernels nbits_int8_scalar, nbits_int8_neon, nbits_int8_i8mm, nbits_int8_avx2, nbits_int8_avxvnni,
    nbits_int8_avx512, nbits_int8_avx512vnni, nbits_int8_amx;
extern const QuantizeKernels quantize_scalar, quantize_avx2, quantize_avx512;

// Name, needs and kernels, in order of preference, the best last; each behind those whose kernels it can run.
constexpr InstructionSet kInstructionSets[] = {
    {"scalar", 0,
     own(&attention_scalar, &block_sparse_scalar, &encoder_scalar, &int8_scalar, &minifloat_scalar, &nbits_float_scalar,
         &nbits_int8_scalar, &quantize_scalar)},
    {"neon", kNeonDotProducts,
     ONNXPRESS_ON_ARM(&block_sparse_neon, &encoder_neon, &int8_neon, &minifloat_neon, &nbits_float_neon,
                      &nbits_int8_neon)},
    {"i8mm", kNeonDotProducts | kNeonMatrices, ONNXPRESS_ON_ARM(&encoder_i8mm, &int8_i8mm, &nbits_int8_i8mm)},
    {"avx2", kAvx2,
     ONNXPRESS_ON_X86(&attention_avx2, &block_sparse_avx2, &encoder_avx2, &int8_avx2, &minifloat_avx2,
                      &nbits_float_avx2, &nbits_int8_avx2, &quantize_avx2)},
    {"avxvnni", kAvx2 | kAvxVnni, ONNXPRESS_ON_X86(&encoder_avxvnni, &int8_avxvnni, &nbits_int8_avxvnni)},
    {"avx512", kAvx512Needs,  // without dot products of bytes: Skylake-SP
     ONNXPRESS_ON_X86(&attention_avx512, &encoder_avx512, &int8_avx512, &minifloat_avx512, &nbits_float_avx512,
                      &nbits_int8_avx512, &quantize_avx512)},
    {"avx512vnni", kAvx512VnniNeeds,
     ONNXPRESS_ON_X86(&block_sparse_avx512vnni, &encoder_avx512vnni, &int8_avx512vnni, &nbits_int8_avx512vnni)},
    {"avx512vbmi", kAvx512VbmiNeeds, ONNXPRESS_ON_X86(&minifloat_avx512vbmi)},
    {"avx512bf16", kAvx512VbmiNeeds | kAvx512Bf16,
     ONNXPRESS_ON_X86(&minifloat_bfloat16_avx512bf16, &nbits_bfloat16_avx512bf16)},
    {"amx", kAvx512VbmiNeeds | kAmx,
     ONNXPRESS_ON_X86(&attention_amx, &encoder_amx, &int8_amx, &minifloat_bfloat16_amx, &nbits_bfloat16_amx,
                      &nbits_int8_amx)},
};

namespace {

std::vector<Isa> isas_with(unsigned features) {
  std::vector<Isa> isas;
  for (const InstructionSet& set : kInstructionSets) {
    if (set.runs_with(features)) isas.push_back(static_cast<Isa>(&set - kInstructionSets));
  }
  return isas;
}

}  // namespace

const char* isa_name(Isa isa) { return instruction_set(isa).name; }

std::vector<Isa> all_isas() { return isas_with(~0u); }

std::vector<Isa> supported_isas() { return isas_with(cpu_features()); }

Isa parse_isa(const std::string& name, const std::string& setting) {
  const std::vector<Isa> supported = supported_isas();
  for (Isa isa : supported) {
    if (name == isa_name(isa)) return isa;
  }
  std::string names;
  for (const InstructionSet& set : kInstructionSets) {
    if (name == set.name) {
      throw std::runtime_error(setting + name + ": this CPU lacks these instructions; best here is " +
                               isa_name(supported.back()));
    }
    names += names.empty() ? set.name : std::string(", ") + set.name;
  }
  throw std::runtime_error(setting + name + ": unknown instruction set; there are " + names);
}

Isa chosen_isa() {
  const char* asked = std::getenv("ONNXPRESS_ISA");
  return asked != nullptr && *asked != '\0' ? parse_isa(asked, "ONNXPRESS_ISA=")
                                            : isas_with(cpu_features() & ~slow_features()).back();
}

}  // namespace onnxpress
