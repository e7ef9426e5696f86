// The kernels as a Python module, for the optimizer, the tests and the benchmarks.
#include "bindings.h"

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/bit_planes.h"
#include "kernels/kernel_table.h"
#include "kernels/matmul_int8.h"
#include "kernels/quantize_blocks.h"
#include "kernels/roofline.h"

namespace {

using namespace onnxpress;

void check_scheme(int bits, std::int64_t block_size) {
  require(bits >= 2 && bits <= 8, "bits must be 2 to 8, got " + std::to_string(bits));
  require(block_size >= 16 && block_size <= 65536 && (block_size & (block_size - 1)) == 0,
          "block_size must be a power of two from 16, got " + std::to_string(block_size));
}

BlockScales scales_named(const std::string& name) {
  if (name == "float16") return BlockScales::kFloat16;
  if (name == "half") return BlockScales::kHalf;
  require(name == "float32", "scale_type must be float32, float16 or half");
  return BlockScales::kFloat32;
}

std::tuple<double, double, double, double> py_quantize_blocks(
    const py::array& weight, bool transposed, int bits, std::int64_t block_size, bool symmetric, bool search,
    const std::string& scale_type, std::pair<std::int64_t, std::int64_t> columns, Bytes& packed, Floats& scales,
    Bytes& zero_points, const std::optional<Floats>& importance, const std::optional<std::string>& isa) {
  check_scheme(bits, block_size);
  require(weight.ndim() == 2, "weight must have two axes");
  WeightView view{weight.data(), is_half(weight, "weight"), transposed, weight.shape(transposed ? 1 : 0),
                  weight.shape(transposed ? 0 : 1)};
  const auto [begin, end] = columns;
  require(0 <= begin && begin % kTile == 0 && begin <= end && end <= view.N,
          "columns must lie within the weight and begin at a multiple of 16");
  const std::int64_t blocks = (view.K + block_size - 1) / block_size;
  check_shape(packed, "packed", {view.N, blocks, block_size * bits / 8});
  check_shape(scales, "scales", {view.N, blocks});
  check_shape(zero_points, "zero_points", {view.N, blocks});
  if (importance) check_shape(*importance, "importance", {view.K});
  const QuantizedBlocks out{packed.mutable_data(), scales.mutable_data(), zero_points.mutable_data()};
  const BlockScheme scheme{bits, block_size, symmetric, search, scales_named(scale_type)};
  const Isa chosen = isa_of(isa);
  RoundingCosts errors;
  {
    py::gil_scoped_release release;
    errors = quantize_blocks(view, scheme, importance ? importance->data() : nullptr, begin, end, out, chosen);
  }
  return {errors.error, errors.cost, errors.baseline, errors.energy};
}

Bytes py_unpack_codes(const Bytes& packed, int bits, std::int64_t block_size, std::int64_t K) {
  check_scheme(bits, block_size);
  require(packed.ndim() == 3, "packed must have three axes");
  const std::int64_t N = packed.shape(0), blocks = packed.shape(1);
  require(
      packed.shape(2) == block_size * bits / 8 && K >= 0 && K < kMaxRows && (K + block_size - 1) / block_size == blocks,
      "packed has the wrong shape");
  Bytes codes({N, K});
  const std::uint8_t* from = packed.data();
  std::uint8_t* to = codes.mutable_data();
  std::vector<std::uint8_t> block(static_cast<std::size_t>(block_size));
  py::gil_scoped_release release;
  for (std::int64_t n = 0; n < N; ++n) {
    for (std::int64_t b = 0; b < blocks; ++b, from += block_size * bits / 8) {
      unpack_planes(from, block_size, bits, block.data());
      std::copy_n(block.data(), std::min(block_size, K - b * block_size), to + n * K + b * block_size);
    }
  }
  return codes;
}

Bytes py_pack_zero_points(const Bytes& zero_points, int bits) {
  check_scheme(bits, 16);
  require(zero_points.ndim() == 2, "zero_points must have two axes");
  const std::int64_t N = zero_points.shape(0), blocks = zero_points.shape(1);
  const std::int64_t bytes = packed_bytes(blocks, bits);
  Bytes packed({N, bytes});
  for (std::int64_t n = 0; n < N; ++n) {
    pack_planes(zero_points.data() + n * blocks, blocks, bits, packed.mutable_data() + n * bytes);
  }
  return packed;
}

bool py_all_finite(const py::array& array) {
  const bool half = is_half(array, "array");
  const Isa isa = chosen_isa();
  py::gil_scoped_release release;
  return all_finite(array.data(), half, array.size(), isa);
}

NBitsSource source_of(const Bytes& packed, const py::array& scales, const std::optional<py::array>& zero_points,
                      int bits, std::int64_t block_size, std::int64_t K) {
  require(bits >= 2 && bits <= 8, "bits must be 2 to 8, got " + std::to_string(bits));
  require(K >= 1 && K < kMaxRows, "K must be positive");
  require(is_block_size(block_size, K) && block_size < kMaxRows,
          "block_size must be a multiple of 16, or K, got " + std::to_string(block_size));
  require(packed.ndim() == 3, "packed must have three axes");
  NBitsSource source;
  source.K = K;
  source.N = packed.shape(0);
  source.bits = bits;
  source.block_size = block_size;
  const std::int64_t blocks = source.blocks();
  check_shape(packed, "packed", {source.N, blocks, packed_bytes(block_size, bits)});
  check_shape(scales, "scales", {source.N, blocks});
  source.codes = packed.data();
  source.scales = scales.data();
  source.scale_type = scale_type_of(scales, "scales");
  source.scale_per_block = 1;
  source.scale_per_column = blocks;
  if (zero_points && py::isinstance<Bytes>(*zero_points)) {
    check_shape(*zero_points, "zero_points", {source.N, packed_bytes(blocks, bits)});
    source.zero_points = static_cast<const std::uint8_t*>(zero_points->data());
  } else if (zero_points) {
    check_shape(*zero_points, "zero_points", {source.N, blocks});
    require(scale_type_of(*zero_points, "zero_points") == source.scale_type,
            "float zero_points must have the type of scales");
    source.float_zero_points = zero_points->data();
  }
  return source;
}

PackedWeight py_pack(const Bytes& packed, const py::array& scales, const std::optional<py::array>& zero_points,
                     int bits, std::int64_t block_size, std::int64_t K) {
  return pack(source_of(packed, scales, zero_points, bits, block_size, K), Sequential());
}

std::pair<Floats, std::string> py_matmul_nbits(const Floats& A, const Bytes& packed, const py::array& scales,
                                               const std::optional<py::array>& zero_points,
                                               const std::optional<Floats>& bias, int bits, std::int64_t block_size,
                                               std::int64_t K, int accuracy_level,
                                               const std::optional<std::string>& activation,
                                               const std::optional<Floats>& gate, const std::optional<Floats>& addend,
                                               const std::optional<Floats>& norm_scale, float norm_epsilon, int glu,
                                               const std::optional<std::string>& isa) {
  const NBitsSource source = source_of(packed, scales, zero_points, bits, block_size, K);
  require(A.ndim() == 2, "A must have two axes");
  check_shape(A, "A", {A.shape(0), K});
  if (bias) check_shape(*bias, "bias", {source.N});
  if (gate) check_shape(*gate, "gate", {A.shape(0), source.N});
  if (addend) check_shape(*addend, "addend", {A.shape(0), source.N});
  if (norm_scale) check_shape(*norm_scale, "norm_scale", {K});
  require(glu >= 0 && glu <= 2, "glu must be 0 for none, or the half that is activated");
  require(glu == 0 || (source.N % 2 == 0 && !gate && !addend), "glu halves N, and goes without gate and addend");
  Floats Y({A.shape(0), glu == 0 ? source.N : source.N / 2});
  const Sequential alone;
  const PackedWeight weight = pack(source, alone);
  const NBitsProblem problem{A.data(),
                             A.shape(0),
                             &weight.view,
                             bias ? bias->data() : nullptr,
                             Y.mutable_data(),
                             activation ? activation_of(*activation) : Activation::kNone,
                             gate ? gate->data() : nullptr,
                             addend ? addend->data() : nullptr,
                             {norm_scale ? norm_scale->data() : nullptr, norm_epsilon},
                             static_cast<Glu>(glu)};
  const char* ran = matmul_nbits(problem, compute_of(accuracy_level), isa_of(isa), alone);
  return {Y, ran};
}

// int8 or uint8, C-contiguous.
bool is_int8(const py::array& array, const char* name) {
  require((array.flags() & py::array::c_style) != 0, std::string(name) + " must be C-contiguous");
  const bool is_signed = py::isinstance<py::array_t<std::int8_t>>(array);
  require(is_signed || py::isinstance<Bytes>(array), std::string(name) + " must be int8 or uint8");
  return is_signed;
}

// (scale, zero point, whether codes are int8)
using FormatTuple = std::tuple<float, std::int32_t, bool>;

Int8Format format_of(const FormatTuple& tuple) {
  const auto [scale, zero_point, is_signed] = tuple;
  require(zero_point >= (is_signed ? -128 : 0) && zero_point <= (is_signed ? 127 : 255), "zero point out of range");
  return {scale, zero_point, is_signed};
}

// One number for all or one a column.
bool is_per_column(const py::array& array, const char* name, std::int64_t N) {
  const bool one = array.ndim() == 0 || (array.ndim() == 1 && array.shape(0) == 1);
  if (!one) check_shape(array, name, {N});
  return !one;
}

Int8Source int8_source_of(const py::array& weight, const std::optional<py::array>& zero_points,
                          const std::optional<Floats>& scales, bool transposed) {
  require(weight.ndim() == 2, "weight must have two axes");
  Int8Source source;
  source.K = weight.shape(transposed ? 1 : 0);
  source.N = weight.shape(transposed ? 0 : 1);
  source.transposed = transposed;
  source.is_signed = is_int8(weight, "weight");
  source.codes = static_cast<const std::uint8_t*>(weight.data());
  if (zero_points) {
    require(is_int8(*zero_points, "zero_points") == source.is_signed, "zero_points must have the type of weight");
    source.zero_points = static_cast<const std::uint8_t*>(zero_points->data());
    source.zero_point_per_column = is_per_column(*zero_points, "zero_points", source.N);
  }
  if (scales) {
    source.scales = scales->data();
    source.scale_per_column = is_per_column(*scales, "scales", source.N);
  }
  return source;
}

std::pair<py::array, std::string> py_matmul_int8(const py::array& A, const py::array& weight,
                                                 const std::optional<py::array>& zero_points,
                                                 const std::optional<Floats>& scales, const std::optional<Floats>& bias,
                                                 const FormatTuple& a_format,
                                                 const std::optional<FormatTuple>& y_format, bool transposed,
                                                 const std::optional<std::string>& isa) {
  const Int8Source source = int8_source_of(weight, zero_points, scales, transposed);
  require(A.ndim() == 2, "A must have two axes");
  check_shape(A, "A", {A.shape(0), source.K});
  if (bias) check_shape(*bias, "bias", {source.N});
  const Sequential alone;
  const PackedInt8 packed = pack(source, alone);
  Int8Problem problem;
  problem.input = format_of(a_format);
  if (py::isinstance<Floats>(A)) {
    problem.floats = static_cast<const float*>(A.data());
  } else {
    require(is_int8(A, "A") == problem.input.is_signed, "A must be float32 or of the type of a_format");
    problem.codes = static_cast<const std::uint8_t*>(A.data());
  }
  problem.M = A.shape(0);
  problem.weight = &packed.view;
  problem.bias = bias ? bias->data() : nullptr;
  const std::vector<py::ssize_t> shape{A.shape(0), source.N};
  py::array Y;
  if (y_format) {
    problem.output = format_of(*y_format);
    Y = py::array(py::dtype(problem.output.is_signed ? "int8" : "uint8"), shape);
    problem.codes_out = static_cast<std::uint8_t*>(Y.mutable_data());
  } else {
    Y = aligned_floats(shape);
    problem.floats_out = static_cast<float*>(Y.mutable_data());
  }
  const char* ran = matmul_int8(problem, isa_of(isa), alone);
  return {Y, ran};
}

std::pair<float, std::int32_t> py_dynamic_format(const Floats& values, const std::optional<std::string>& isa) {
  const Int8Format format = dynamic_format(values.data(), values.size(), isa_of(isa), Sequential());
  return {format.scale, format.zero_point};
}

double py_dot_rate(double seconds, const std::optional<std::string>& isa) {
  const Isa chosen = isa_of(isa);
  py::gil_scoped_release release;
  return measure_dot_rate(chosen, seconds);
}

void py_read(const Bytes& memory, const std::optional<std::string>& isa) {
  const Isa chosen = isa_of(isa);
  const std::uint8_t* bytes = memory.data();
  const std::int64_t count = memory.size();
  py::gil_scoped_release release;
  read_memory(chosen, bytes, count);
}

std::vector<std::string> names_of(const std::vector<Isa>& isas) {
  std::vector<std::string> names;
  for (Isa isa : isas) names.emplace_back(isa_name(isa));
  return names;
}

// The instruction sets whose kernels of a kind run on `isa`, the best first.
template <class Kernels>
std::vector<std::string> names_of_kernels(Isa isa) {
  std::vector<std::string> names;
  for (Isa each : all_isas()) {
    const InstructionSet& set = instruction_set(each);
    const bool has_kernels = std::get<const Kernels*>(set.kernels) != nullptr;
    if (has_kernels && set.runs_with(instruction_set(isa).needs)) names.insert(names.begin(), set.name);
  }
  return names;
}

std::map<std::string, std::vector<std::string>> py_kernels(const std::string& name) {
  const std::vector<Isa> isas = all_isas();
  const auto isa = std::find_if(isas.begin(), isas.end(), [&](Isa each) { return name == isa_name(each); });
  require(isa != isas.end(), name + " is no instruction set");
  return {{"attention", names_of_kernels<AttentionKernels>(*isa)},
          {"block_sparse", names_of_kernels<BlockSparseKernels>(*isa)},
          {"encoder", names_of_kernels<EncoderKernels>(*isa)},
          {"int8", names_of_kernels<Int8Kernels>(*isa)},
          {"minifloat_bfloat16", names_of_kernels<MiniFloatBFloat16Kernels>(*isa)},
          {"minifloat_float", names_of_kernels<MiniFloatKernels>(*isa)},
          {"nbits_bfloat16", names_of_kernels<NBitsBFloat16Kernels>(*isa)},
          {"nbits_float", names_of_kernels<NBitsFloatKernels>(*isa)},
          {"nbits_int8", names_of_kernels<NBitsInt8Kernels>(*isa)},
          {"quantize", names_of_kernels<QuantizeKernels>(*isa)}};
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Kernels of onnxpress; reference/ says what each means.";
  m.def("quantize_blocks", py_quantize_blocks, py::arg("weight"), py::arg("transposed"), py::arg("bits"),
        py::arg("block_size"), py::arg("symmetric"), py::arg("search"), py::arg("scale_type"), py::arg("columns"),
        py::arg("packed").noconvert(), py::arg("scales").noconvert(), py::arg("zero_points").noconvert(),
        py::arg("importance") = py::none(), py::arg("isa") = py::none());
  m.def("unpack_codes", py_unpack_codes, py::arg("packed"), py::arg("bits"), py::arg("block_size"), py::arg("K"));
  m.def("pack_zero_points", py_pack_zero_points, py::arg("zero_points"), py::arg("bits"));
  m.def("all_finite", py_all_finite, py::arg("array"));
  py::class_<PackedWeight>(m, "PackedWeight", "A weight in the form that the kernels read.")
      .def_property_readonly("nbytes", [](const PackedWeight& weight) { return weight.memory.size; });
  m.def("pack", py_pack, py::arg("packed"), py::arg("scales"), py::arg("zero_points"), py::kw_only(), py::arg("bits"),
        py::arg("block_size"), py::arg("K"));
  m.def("matmul_nbits", py_matmul_nbits, py::arg("A"), py::arg("packed"), py::arg("scales"), py::arg("zero_points"),
        py::arg("bias"), py::kw_only(), py::arg("bits"), py::arg("block_size"), py::arg("K"),
        py::arg("accuracy_level") = 0, py::arg("activation") = py::none(), py::arg("gate") = py::none(),
        py::arg("addend") = py::none(), py::arg("norm_scale") = py::none(), py::arg("norm_epsilon") = 0.0f,
        py::arg("glu") = 0, py::arg("isa") = py::none(),
        "Returns y and the name of the instruction set whose code ran.");
  m.def("matmul_int8", py_matmul_int8, py::arg("A"), py::arg("weight"), py::arg("zero_points"), py::arg("scales"),
        py::arg("bias"), py::kw_only(), py::arg("a_format"), py::arg("y_format") = py::none(),
        py::arg("transposed") = false, py::arg("isa") = py::none(),
        "Formats are (scale, zero point, is signed). Returns y and the name of the instruction set whose code ran.");
  m.def("dynamic_format", py_dynamic_format, py::arg("values"), py::kw_only(), py::arg("isa") = py::none(),
        "Scale and zero point that DynamicQuantizeLinear chooses.");
  m.def("dot_rate", py_dot_rate, py::arg("seconds"), py::kw_only(), py::arg("isa") = py::none(),
        "int8 multiply-adds a second of one thread, out of registers.");
  m.def("read", py_read, py::arg("memory").noconvert(), py::kw_only(), py::arg("isa") = py::none(),
        "Reads an array of bytes as fast as one thread can, to be timed.");
  bind_attention(m);
  bind_block_sparse(m);
  bind_encoder(m);
  bind_minifloat(m);
  m.def("all_isas", [] { return names_of(all_isas()); }, "Instruction sets that there are kernels for, slowest first.");
  m.def("supported_isas", [] { return names_of(supported_isas()); }, "Those of all_isas that this CPU has.");
  m.def("kernels", py_kernels, py::arg("isa"),
        "By kind, the instruction sets whose kernels run on one, the best first.");
  m.def("chosen_isa", [] { return std::string(isa_name(chosen_isa())); }, "What ONNXPRESS_ISA or CPUID picks.");
}
