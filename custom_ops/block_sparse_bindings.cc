// Block-sparse products as functions of the Python module.
#include "bindings.h"
#include "kernels/block_sparse.h"

namespace onnxpress {
namespace {

using Ints = py::array_t<std::int32_t, py::array::c_style>;

void refuse(const std::string& find_error) { require(find_error.empty(), find_error); }

PackedBlockSparse py_pack(const py::array& values, const Ints& indices, const Ints& offsets,
                          const std::optional<Floats>& scales, std::int64_t K, std::int64_t N) {
  require(values.ndim() == 3 && (values.flags() & py::array::c_style) != 0,
          "values must have three axes and be C-contiguous");
  BlockSparseSource source;
  source.K = K;
  source.N = N;
  source.blocks = values.shape(0);
  source.block_n = values.shape(1);
  source.block_k = values.shape(2);
  refuse(find_size_error(source));
  check_shape(indices, "indices", {source.blocks});
  check_shape(offsets, "offsets", {source.block_rows() + 1});
  source.indices = indices.data();
  source.offsets = offsets.data();
  if (py::isinstance<Floats>(values)) {
    require(!scales, "scales are of int8 values");
    source.is_float = true;
    source.floats = static_cast<const float*>(values.data());
  } else {
    require(py::isinstance<py::array_t<std::int8_t>>(values), "values must be int8 or float32");
    require(scales.has_value(), "int8 values need scales");
    check_shape(*scales, "scales", {N});
    source.codes = static_cast<const std::int8_t*>(values.data());
    source.scales = scales->data();
  }
  refuse(find_error(source));
  py::gil_scoped_release release;
  return pack(source);
}

// (scale, zero point) of uint8
using Format = std::pair<float, std::int32_t>;

Int8Format format_of(const Format& format) {
  require(format.second >= 0 && format.second <= 255, "zero point out of range");
  return {format.first, format.second, false};
}

std::pair<py::array, std::string> py_block_sparse_matmul(const py::array& A, const PackedBlockSparse& weight,
                                                         const std::optional<Floats>& bias,
                                                         const std::string& activation,
                                                         const std::optional<Format>& a_format,
                                                         const std::optional<Format>& y_format,
                                                         const std::optional<std::string>& isa) {
  const BlockSparseWeight& w = weight.view;
  require(A.ndim() == 2 && (A.flags() & py::array::c_style) != 0, "A must have two axes and be C-contiguous");
  require(A.shape(0) < kMaxRows / w.K / w.N + 2, "A has too many rows");
  check_shape(A, "A", {A.shape(0), w.K});
  if (bias) check_shape(*bias, "bias", {w.N});
  BlockSparseProblem problem;
  problem.weight = &w;
  problem.M = A.shape(0);
  problem.bias = bias ? bias->data() : nullptr;
  if (!activation.empty()) problem.activation = activation_of(activation);
  require(problem.activation != Activation::kSilu, "activation must be relu, gelu or gelu_tanh");
  if (a_format) {
    require(!w.is_float, "a_format is of int8 weights");
    problem.is_static = true;
    problem.input = format_of(*a_format);
  }
  if (py::isinstance<Floats>(A)) {
    problem.floats = static_cast<const float*>(A.data());
  } else {
    require(py::isinstance<Bytes>(A) && a_format, "A must be float32, or uint8 with a_format");
    problem.codes = static_cast<const std::uint8_t*>(A.data());
  }
  const std::vector<py::ssize_t> shape{A.shape(0), w.N};
  py::array Y;
  if (y_format) {
    problem.output = format_of(*y_format);
    Y = Bytes(shape);
    problem.codes_out = static_cast<std::uint8_t*>(Y.mutable_data());
  } else {
    Y = aligned_floats(shape);
    problem.floats_out = static_cast<float*>(Y.mutable_data());
  }
  const char* ran = block_sparse_matmul(problem, isa_of(isa), Sequential());
  return {Y, ran};
}

}  // namespace

void bind_block_sparse(py::module_& m) {
  py::class_<PackedBlockSparse>(m, "PackedBlockSparse", "A block-sparse weight in the forms that the kernels read.")
      .def_property_readonly("nbytes", [](const PackedBlockSparse& weight) { return weight.memory.size; });
  m.def("pack_block_sparse", py_pack, py::arg("values"), py::arg("indices"), py::arg("offsets"), py::arg("scales"),
        py::kw_only(), py::arg("K"), py::arg("N"));
  m.def("block_sparse_matmul", py_block_sparse_matmul, py::arg("A"), py::arg("weight"), py::arg("bias") = py::none(),
        py::kw_only(), py::arg("activation") = "", py::arg("a_format") = py::none(), py::arg("y_format") = py::none(),
        py::arg("isa") = py::none(),
        "Formats are (scale, zero point) of uint8. Returns y and the name of the instruction set whose code ran.");
}

}  // namespace onnxpress
