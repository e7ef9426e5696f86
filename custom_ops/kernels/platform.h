// What the kernels ask of the operating system, which is Linux.
#pragma once

#include <cstddef>

namespace onnxpress {

// Zeroed pages of their own, large ones where there are; null where there is no memory.
void* map_pages(std::size_t bytes);
void unmap_pages(void* pages, std::size_t bytes);

// Asks that this process may use the tiles of AMX. False where the system refuses or does not know them.
bool allow_amx_tiles();

// Whether the CPU has dot products of bytes (Arm).
bool has_neon_dot_products();

// Whether the CPU has Arm's products of matrices of bytes.
bool has_neon_matrices();

}  // namespace onnxpress
