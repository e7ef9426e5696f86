// A fast hash against damage and mix-ups. It withstands no adversary, and nothing that is safe depends on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace onnxpress {

std::uint64_t hash_of(const void* bytes, std::size_t size);

// 16 hexadecimal digits.
std::string to_hex(std::uint64_t hash);

}  // namespace onnxpress
