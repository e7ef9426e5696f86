// Instruction sets: sets of features of a CPU that kernels are compiled for. One is chosen for a process, from what the
// CPU has or by ONNXPRESS_ISA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace onnxpress {

// A row of the table in cpu_isa.cc, which says all about it. The first needs nothing of the CPU.
enum class Isa : std::uint8_t {};

const char* isa_name(Isa isa);

// All that have a name, in order of preference, the best last.
std::vector<Isa> all_isas();

// Those of them that this CPU and its operating system can run.
std::vector<Isa> supported_isas();

// The best supported one, or what ONNXPRESS_ISA asks for.
// Throws std::runtime_error when that is no name of an instruction set or the CPU lacks it.
Isa chosen_isa();

// Throws std::runtime_error like `chosen_isa` when `name` cannot be run here; the message begins with `setting`.
Isa parse_isa(const std::string& name, const std::string& setting = "");

}  // namespace onnxpress
