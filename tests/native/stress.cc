// Many threads that pack, share and multiply at once, to be built with a sanitizer: see .ci/sanitize.
// Every result is compared with that of one thread alone, and no task may allocate: in somebody else's pool it could
// not tell of a failure. Who allocates is found out by the linker, which puts functions of this file around (--wrap).
#include <atomic>
#include <cstdio>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "ops/shared_weights.h"
#include "tests/native/problems.h"

thread_local bool in_task = false;
std::atomic<int> allocations_in_tasks{0};

extern "C" {
void* __real_aligned_alloc(std::size_t alignment, std::size_t size);
void* __real__Znwm(std::size_t size);  // operator new
void* __real_mmap(void* address, std::size_t size, int protection, int flags, int file, long offset);

void* __wrap_aligned_alloc(std::size_t alignment, std::size_t size) {
  allocations_in_tasks += in_task;
  return __real_aligned_alloc(alignment, size);
}

void* __wrap__Znwm(std::size_t size) {
  allocations_in_tasks += in_task;
  return __real__Znwm(size);
}

void* __wrap_mmap(void* address, std::size_t size, int protection, int flags, int file, long offset) {
  allocations_in_tasks += in_task;
  return __real_mmap(address, size, protection, flags, file, offset);
}
}

namespace onnxpress {
namespace {

constexpr std::size_t kThreads = 4;  // each of which comes to each problem

// Two threads a call, which fetch the tasks from each other.
class Pair final : public Parallel {
 public:
  void run(std::size_t count, void (*task)(void*, std::size_t), void* arg) const override {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      in_task = true;
      for (std::size_t index = next++; index < count; index = next++) task(arg, index);
      in_task = false;
    };
    std::thread other(work);
    work();
    other.join();
  }
};

int wrong_layers(Isa isa) {
  static const Layer layers[] = {{11, 1, 100, 48, 80, 3}, {12, 5, 130, 40, 33, 2}, {13, 40, 9, 21, 7, 1}};
  std::vector<std::vector<float>> expected;
  for (const Layer& layer : layers) expected.push_back(layer.run(isa, Sequential()));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::size_t round = 0; round < std::size(layers); ++round) {
        const std::size_t which = (thread + round) % std::size(layers);
        if (layers[which].run(isa, Pair()) != expected[which]) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return wrong;
}

template <class P, std::size_t Count>
int wrong_results(const P (&products)[Count], Isa isa) {
  std::vector<std::vector<float>> expected;
  for (const P& product : products) {
    expected.push_back(product.multiply(product.packed(Sequential()).view, isa, Sequential()));
  }
  std::atomic<int> wrong{0};
  const auto work = [&](std::size_t thread) {
    for (std::size_t round = 0; round < Count; ++round) {
      // Each weight is packed anew, and dropped by some while others take it.
      const std::size_t which = (thread + round) % Count;
      const auto weight = share(products[which].packed(Pair()));
      if (products[which].multiply(weight.view, isa, Pair()) != expected[which]) ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
  return wrong;
}

// Large enough that kernels divide them into tasks, and few rows that they do not.
int wrong_results(Isa isa) {
  static const Product products[] = {
      {1, 4, 1, Compute::kInt8},
      {1, 4, 17, Compute::kInt8},
      {2, 3, 5, Compute::kFloat32},
      {3, 8, 2, Compute::kInt8},
      {1, 4, 1, Compute::kFloat32, CodeKind::kNF4},
      {4, 6, 9, Compute::kBFloat16, CodeKind::kE2M3},
  };
  static const SparseProduct sparse[] = {
      {5, 4, 4, 70, 600, 300}, {6, 4, 1, 34, 600, 300}, {7, 1, 4, 17, 600, 300}, {8, 4, 4, 2, 600, 300}};
  static const Int8Product int8[] = {{9, 1000, 17}, {10, 66000, 3, 20}};
  return wrong_results(products, isa) + wrong_results(sparse, isa) + wrong_results(int8, isa) + wrong_layers(isa);
}

}  // namespace
}  // namespace onnxpress

int main() {
  int wrong = 0;
  for (const onnxpress::Isa isa : onnxpress::supported_isas()) {
    const int here = onnxpress::wrong_results(isa);
    std::printf("%s: %d results wrong\n", onnxpress::isa_name(isa), here);
    wrong += here;
  }
  std::printf("%d allocations in tasks\n", allocations_in_tasks.load());
  return wrong == 0 && allocations_in_tasks == 0 ? 0 : 1;
}
