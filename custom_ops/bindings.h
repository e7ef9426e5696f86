// What the parts of the Python module share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <initializer_list>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/aligned.h"
#include "kernels/cpu_isa.h"
#include "kernels/matmul_nbits.h"

namespace onnxpress {

namespace py = pybind11;

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

constexpr std::int64_t kMaxRows = std::int64_t{1} << 40;  // beyond, sizes could overflow

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class Array>
void check_shape(const Array& array, const char* name, std::initializer_list<std::int64_t> shape) {
  bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
  py::ssize_t axis = 0;
  for (std::int64_t size : shape) same = same && array.shape(axis++) == size;
  require(same, std::string(name) + " has the wrong shape");
}

inline Isa isa_of(const std::optional<std::string>& name) { return name ? parse_isa(*name) : chosen_isa(); }

inline Activation activation_of(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  require(name == "gelu_tanh", "activation must be relu, silu, gelu or gelu_tanh, got " + name);
  return Activation::kGeluTanh;
}

// On a cache line, as ONNX Runtime has its tensors.
inline Floats aligned_floats(const std::vector<py::ssize_t>& shape) {
  const auto lines = static_cast<std::size_t>(shape[0] * shape[1]) * sizeof(float) / kCacheLine + 1;
  void* memory = std::aligned_alloc(kCacheLine, lines * kCacheLine);
  if (memory == nullptr) throw std::bad_alloc();
  return Floats(shape, static_cast<float*>(memory), py::capsule(memory, std::free));
}

// float32 or float16, C-contiguous.
inline bool is_half(const py::array& array, const char* name) {
  require((array.flags() & py::array::c_style) != 0, std::string(name) + " must be C-contiguous");
  const bool half = array.dtype().kind() == 'f' && array.dtype().itemsize() == 2;
  require(half || py::isinstance<py::array_t<float>>(array), std::string(name) + " must be float32 or float16");
  return half;
}

inline ScaleType scale_type_of(const py::array& array, const char* name) {
  // A type of the package ml_dtypes, which NumPy knows by name only.
  if (std::string(py::str(array.dtype())) == "bfloat16") {
    require((array.flags() & py::array::c_style) != 0, std::string(name) + " must be C-contiguous");
    return ScaleType::kBFloat16;
  }
  return is_half(array, name) ? ScaleType::kFloat16 : ScaleType::kFloat32;
}

void bind_attention(py::module_& m);
void bind_block_sparse(py::module_& m);
void bind_encoder(py::module_& m);
void bind_minifloat(py::module_& m);

}  // namespace onnxpress
