// How a kernel spreads independent tasks of work over somebody else's threads.
#pragma once

#include <cstddef>

namespace onnxpress {

class Parallel {
 public:
  virtual ~Parallel() = default;

  // Calls task(arg, 0) ... task(arg, count - 1), each once, in any order, on any threads, and returns when all are
  // done. Tasks must not throw.
  virtual void run(std::size_t count, void (*task)(void*, std::size_t), void* arg) const = 0;

  template <class Task>
  void for_each(std::size_t count, const Task& task) const {
    run(count, [](void* arg, std::size_t index) { (*static_cast<const Task*>(arg))(index); }, const_cast<Task*>(&task));
  }
};

// The calling thread alone.
class Sequential final : public Parallel {
 public:
  void run(std::size_t count, void (*task)(void*, std::size_t), void* arg) const override {
    for (std::size_t index = 0; index < count; ++index) task(arg, index);
  }
};

}  // namespace onnxpress
