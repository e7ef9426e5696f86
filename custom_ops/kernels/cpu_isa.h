// Which instruction set the kernels run on, chosen once a process from CPUID and ONNXPRESS_ISA.
#pragma once

#include <string>
#include <vector>

namespace onnxpress {

// In order of rank: what has no code for one runs the best below it.
enum class Isa { kScalar, kNeon, kAvx2, kAvxVnni, kAvx512Vnni, kAvx512Vbmi, kAvx512Bf16, kAmx };

const char* isa_name(Isa isa);

// Those this library has kernels for and this CPU (and operating system) can run, slowest first.
std::vector<Isa> supported_isas();

// The fastest supported one, or what ONNXPRESS_ISA asks for.
// Throws std::runtime_error when that is no name of an instruction set or the CPU lacks it.
Isa chosen_isa();

// Throws std::runtime_error like `chosen_isa` when `name` cannot be run here; the message begins with `setting`.
Isa parse_isa(const std::string& name, const std::string& setting = "");

}  // namespace onnxpress
