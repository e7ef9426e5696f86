// Products of small floating-point codes as functions of the Python module.
#include "bindings.h"
#include "kernels/bit_planes.h"
#include "kernels/rounding_errors.h"

namespace onnxpress {
namespace {

NBitsSource source_of(const Bytes& packed, const py::array& scales, const std::string& format, std::int64_t block_size,
                      std::int64_t K) {
  NBitsSource source;
  source.kind = minifloat_kind(format.c_str());
  require(source.kind != CodeKind::kInteger, "format is '" + format + "', must be " + minifloat_names());
  require(K >= 1 && K < kMaxRows, "K must be positive");
  require(block_size >= 0 && block_size % 16 == 0 && block_size < kMaxRows,
          "block_size must be a multiple of 16, or 0, got " + std::to_string(block_size));
  require(packed.ndim() == 3, "packed must have three axes");
  source.K = K;
  source.N = packed.shape(0);
  source.bits = minifloat(source.kind).bits();
  source.block_size = block_size == 0 ? K : block_size;
  const std::int64_t blocks = source.blocks();
  check_shape(packed, "packed", {source.N, blocks, packed_bytes(source.block_size, source.bits)});
  check_shape(scales, "scales", {source.N, blocks});
  source.codes = packed.data();
  source.scales = scales.data();
  source.scale_type = py::isinstance<Bytes>(scales) ? ScaleType::kExponent : scale_type_of(scales, "scales");
  source.scale_per_block = 1;
  source.scale_per_column = blocks;
  return source;
}

std::pair<Floats, std::string> py_matmul_minifloat(const Floats& A, const Bytes& packed, const py::array& scales,
                                                   const std::optional<Floats>& bias, const std::string& format,
                                                   std::int64_t block_size, std::int64_t K, int accuracy_level,
                                                   const std::optional<std::string>& isa) {
  const NBitsSource source = source_of(packed, scales, format, block_size, K);
  require(A.ndim() == 2, "A must have two axes");
  check_shape(A, "A", {A.shape(0), K});
  if (bias) check_shape(*bias, "bias", {source.N});
  Floats Y({A.shape(0), source.N});
  const Sequential alone;
  const PackedWeight weight = pack(source, alone);
  NBitsProblem problem;
  problem.A = A.data();
  problem.M = A.shape(0);
  problem.weight = &weight.view;
  problem.bias = bias ? bias->data() : nullptr;
  problem.Y = Y.mutable_data();
  const char* ran = matmul_nbits(problem, compute_of(accuracy_level), isa_of(isa), alone);
  return {Y, ran};
}

std::tuple<Floats, std::string> py_rounding_errors(const Floats& x, const Floats& scales, const Floats& growth,
                                                   const std::string& format, const std::optional<std::string>& isa) {
  const CodeKind kind = minifloat_kind(format.c_str());
  require(kind != CodeKind::kInteger, "format is '" + format + "', must be " + minifloat_names());
  require(x.ndim() == 2, "x must have two axes");
  check_shape(scales, "scales", {x.shape(0)});
  check_shape(growth, "growth", {x.shape(0)});
  Floats sums({x.shape(0), static_cast<std::int64_t>(kRoundingSums)});
  const ScaledBlocks blocks{x.data(), scales.data(), growth.data(), x.shape(0), x.shape(1)};
  float* to = sums.mutable_data();
  const Isa chosen = isa_of(isa);
  const char* ran = nullptr;
  {
    py::gil_scoped_release release;
    ran = rounding_errors(blocks, kind, to, chosen);
  }
  return {sums, ran};
}

}  // namespace

void bind_minifloat(py::module_& m) {
  m.def("matmul_minifloat", py_matmul_minifloat, py::arg("A"), py::arg("packed"), py::arg("scales"), py::arg("bias"),
        py::kw_only(), py::arg("format"), py::arg("block_size"), py::arg("K"), py::arg("accuracy_level") = 0,
        py::arg("isa") = py::none(), "Returns y and the name of the instruction set whose code ran.");
  m.def("rounding_errors", py_rounding_errors, py::arg("x"), py::arg("scales"), py::arg("growth"), py::arg("format"),
        py::arg("isa") = py::none(),
        "Returns four sums of each block and the name of the instruction set whose code ran.");
}

}  // namespace onnxpress
