// Attention against a cache as a function of the Python module.
#include <algorithm>

#include "bindings.h"
#include "kernels/cached_attention.h"

namespace onnxpress {
namespace {

using Longs = py::array_t<std::int64_t, py::array::c_style>;

// Cosines and sines [positions, size / 2], and of each token its position, or none.
using Tables = std::tuple<Floats, Floats, std::optional<Longs>>;

Rotation rotation_of(const Tables& tables, bool interleaved, const CachedAttention& a) {
  const auto& [cosines, sines, positions] = tables;
  require(cosines.ndim() == 2 && 2 * cosines.shape(1) <= a.head_size, "cosines have the wrong shape");
  check_shape(sines, "sines", {cosines.shape(0), cosines.shape(1)});
  Rotation rotation{2 * cosines.shape(1), interleaved, cosines.data(), sines.data(), nullptr};
  const std::int64_t size = cosines.shape(0);
  const auto is_inside = [size](std::int64_t position) { return 0 <= position && position < size; };
  if (positions) {
    check_shape(*positions, "positions", {a.batch, a.tokens});
    rotation.positions = positions->data();
    for (py::ssize_t i = 0; i < positions->size(); ++i)
      require(is_inside(rotation.positions[i]), "a position is outside");
  } else if (a.tokens > 0) {
    for (std::int64_t row = 0; row < a.batch; ++row) {
      require(is_inside(a.kept[row] + a.tokens - 1), "a position is outside");
    }
  }
  return rotation;
}

std::tuple<Floats, Floats, Floats, std::string> py_cached_attention(
    const Floats& query, const Floats& key, const Floats& value, const Floats& past_key, const Floats& past_value,
    const Longs& kept, const Longs& total, std::int64_t present_size, float scale, float softcap, std::int64_t window,
    const std::optional<Floats>& bias, const std::optional<Floats>& sinks, const std::optional<Tables>& rotation,
    bool interleaved, bool causal, const std::optional<std::tuple<Floats, Floats, float>>& norms,
    const std::optional<std::string>& isa) {
  require(query.ndim() == 4 && key.ndim() == 4 && past_key.ndim() == 4, "query, key and past_key must have four axes");
  CachedAttention a;
  a.batch = query.shape(0);
  a.tokens = query.shape(1);
  a.new_keys = key.shape(1);
  a.causal = causal;
  a.heads = query.shape(2);
  a.head_size = query.shape(3);
  a.kv_heads = key.shape(2);
  a.past_size = past_key.shape(2);
  a.present_size = present_size;
  require(a.kv_heads > 0 && a.heads > 0 && a.heads % a.kv_heads == 0, "heads do not fit");
  require(1 <= a.head_size && a.head_size <= kMaxHeadSize, "heads have the wrong size");
  require(!causal || a.new_keys == a.tokens, "keys and tokens differ in number");
  require(causal || window == 0, "a window is of causal attention");
  check_shape(key, "key", {a.batch, a.new_keys, a.kv_heads, a.head_size});
  check_shape(value, "value", {a.batch, a.new_keys, a.kv_heads, a.head_size});
  check_shape(past_key, "past_key", {a.batch, a.kv_heads, a.past_size, a.head_size});
  check_shape(past_value, "past_value", {a.batch, a.kv_heads, a.past_size, a.head_size});
  check_shape(kept, "kept", {a.batch});
  check_shape(total, "total", {a.batch});
  for (std::int64_t row = 0; row < a.batch; ++row) {
    const std::int64_t kept_of_row = kept.data()[row], end = kept_of_row + a.new_keys;
    require(0 <= kept_of_row && kept_of_row <= a.past_size && end <= present_size, "kept is outside of the cache");
    require(std::min<std::int64_t>(end, 1) <= total.data()[row] && total.data()[row] <= end, "total is outside");
  }
  a.scale = scale;
  a.softcap = softcap;
  a.window = window;
  a.query = query.data();
  a.key = key.data();
  a.value = value.data();
  a.query_stride = a.heads * a.head_size;
  a.key_stride = a.kv_heads * a.head_size;
  a.kept = kept.data();
  a.total = total.data();
  a.past_key = past_key.data();
  a.past_value = past_value.data();
  if (bias) {
    check_shape(*bias, "bias", {a.batch, a.heads, a.tokens, present_size});
    a.bias = {bias->data(), a.heads * a.tokens * present_size, a.tokens * present_size, present_size};
  }
  if (sinks) {
    check_shape(*sinks, "sinks", {a.heads});
    a.has_sink = true;
    a.sinks = sinks->data();
  }
  if (rotation) {
    require(a.new_keys == a.tokens, "a rotation is of as many keys as tokens");
    a.rotation = rotation_of(*rotation, interleaved, a);
  }
  if (norms) {
    const auto& [query_scale, key_scale, epsilon] = *norms;
    check_shape(query_scale, "the norm of queries", {a.head_size});
    check_shape(key_scale, "the norm of keys", {a.head_size});
    a.query_norm = {query_scale.data(), epsilon};
    a.key_norm = {key_scale.data(), epsilon};
  }
  Floats y({a.batch, a.tokens, a.heads, a.head_size});
  Floats present_key({a.batch, a.kv_heads, present_size, a.head_size});
  Floats present_value({a.batch, a.kv_heads, present_size, a.head_size});
  a.output = y.mutable_data();
  a.present_key = present_key.mutable_data();
  a.present_value = present_value.mutable_data();
  const Isa chosen = isa_of(isa);
  const char* ran = nullptr;
  {
    py::gil_scoped_release release;
    ran = cached_attention(a, chosen, Sequential());
  }
  return {y, present_key, present_value, ran};
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("cached_attention", py_cached_attention, py::arg("query"), py::arg("key"), py::arg("value"),
        py::arg("past_key"), py::arg("past_value"), py::arg("kept"), py::arg("total"), py::kw_only(),
        py::arg("present_size"), py::arg("scale") = 1.0f, py::arg("softcap") = 0.0f, py::arg("window") = 0,
        py::arg("bias") = py::none(), py::arg("sinks") = py::none(), py::arg("rotation") = py::none(),
        py::arg("interleaved") = false, py::arg("causal") = true, py::arg("norms") = py::none(),
        py::arg("isa") = py::none(),
        "As reference.cached_attention has it. Returns the output, keys, values, and the name of the instruction set "
        "whose code ran.");
}

}  // namespace onnxpress
