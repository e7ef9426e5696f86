#include "kernels/platform.h"

#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#ifndef HWCAP2_I8MM  // headers older than Linux 5.10
#define HWCAP2_I8MM (1 << 13)
#endif
#endif

namespace onnxpress {

void* map_pages(std::size_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return nullptr;
  madvise(pages, bytes, MADV_HUGEPAGE);  // a hint: fewer page faults now, fewer misses of the TLB later
  return pages;
}

void unmap_pages(void* pages, std::size_t bytes) { munmap(pages, bytes); }

bool allow_amx_tiles() {
#if defined(__x86_64__)
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}

bool has_neon_dot_products() {
#if defined(__aarch64__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;
#endif
}

bool has_neon_matrices() {
#if defined(__aarch64__)
  return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#else
  return false;
#endif
}

}  // namespace onnxpress
