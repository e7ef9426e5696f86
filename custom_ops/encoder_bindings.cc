// Layers of encoders as functions of the Python module.
#include "bindings.h"
#include "kernels/encoder_layer.h"

namespace onnxpress {
namespace {

using Ints = py::array_t<std::int32_t, py::array::c_style>;
using Codes = py::array_t<std::int8_t, py::array::c_style>;
// Codes [K, N], scales [N] and bias [N].
using ProductTuple = std::tuple<Codes, Floats, Floats>;

PackedInt8 pack_product(const ProductTuple& product, std::int64_t K, std::int64_t N, const char* name) {
  const auto& [codes, scales, bias] = product;
  check_shape(codes, name, {K, N});
  check_shape(scales, name, {N});
  check_shape(bias, name, {N});
  require(K <= kSplitK, std::string(name) + " has too many rows");
  Int8Source source;
  source.K = K;
  source.N = N;
  source.codes = reinterpret_cast<const std::uint8_t*>(codes.data());
  source.scales = scales.data();
  source.scale_per_column = true;
  return pack(source, Sequential());
}

LayerNorm norm_of(const Floats& norm, std::int64_t H, float epsilon) {
  check_shape(norm, "norm", {2, H});
  return {norm.data(), norm.data() + H, epsilon};
}

std::tuple<Floats, std::optional<Floats>, std::string> py_encoder_layer(
    const Floats& x, const std::optional<Ints>& mask, const ProductTuple& qkv, const ProductTuple& out,
    const ProductTuple& up, const ProductTuple& down, const Floats& norm1, const Floats& norm2, std::int64_t heads,
    float scale, float epsilon, const std::string& activation, bool norm_first, bool significance,
    const std::optional<std::string>& isa) {
  require(x.ndim() == 3, "x must have three axes");
  const std::int64_t batch = x.shape(0), sequence = x.shape(1), H = x.shape(2);
  const std::int64_t inner = std::get<0>(out).shape(0), F = std::get<0>(up).shape(1);
  require(heads >= 1 && inner >= heads && inner % heads == 0 && inner / heads <= kMaxHeadWidth, "heads do not fit");
  require(sequence <= kMaxTokens, "x has too many tokens");
  if (mask) check_shape(*mask, "mask", {batch, sequence});
  const PackedInt8 packed[] = {pack_product(qkv, H, 3 * inner, "qkv"), pack_product(out, inner, H, "out"),
                               pack_product(up, H, F, "up"), pack_product(down, F, H, "down")};
  EncoderLayer layer;
  layer.heads = heads;
  layer.width = inner / heads;
  layer.scale = scale;
  layer.qkv = {packed[0].view, std::get<2>(qkv).data()};
  layer.out = {packed[1].view, std::get<2>(out).data()};
  layer.up = {packed[2].view, std::get<2>(up).data()};
  layer.down = {packed[3].view, std::get<2>(down).data()};
  layer.norm1 = norm_of(norm1, H, epsilon);
  layer.norm2 = norm_of(norm2, H, epsilon);
  layer.activation = activation_of(activation);
  require(layer.activation != Activation::kSilu, "activation must be relu, gelu or gelu_tanh");
  layer.norm_first = norm_first;
  Floats y({batch, sequence, H});
  std::optional<Floats> received;
  if (significance) received = Floats({batch, sequence});
  const EncoderProblem problem{&layer,
                               batch,
                               sequence,
                               x.data(),
                               mask ? mask->data() : nullptr,
                               y.mutable_data(),
                               received ? received->mutable_data() : nullptr};
  const Isa chosen = isa_of(isa);
  const char* ran = nullptr;
  {
    py::gil_scoped_release release;  // arrays are counted while it is held
    ran = encoder_layer(problem, chosen, Sequential());
  }
  return {y, received, ran};
}

}  // namespace

void bind_encoder(py::module_& m) {
  m.def("encoder_layer", py_encoder_layer, py::arg("x"), py::arg("mask"), py::arg("qkv"), py::arg("out"), py::arg("up"),
        py::arg("down"), py::arg("norm1"), py::arg("norm2"), py::kw_only(), py::arg("heads"), py::arg("scale"),
        py::arg("epsilon") = 1e-12f, py::arg("activation") = "gelu", py::arg("norm_first") = false,
        py::arg("significance") = false, py::arg("isa") = py::none(),
        "Products are (codes int8 [K, N], scales [N], bias [N]), norms [2, H]. Returns y, the significance where "
        "it is asked for, and the name of the instruction set whose code ran.");
}

}  // namespace onnxpress
