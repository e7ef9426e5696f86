from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from command_line import runner
from onnxpress.models import gemma3
from onnxpress.models.export import export
from onnxpress.models.gemma3_config import FULL, SLIDING, Gemma3Config
from onnxpress.models.sentence_head import SentenceHead
from onnxpress.optimizer.errors import OnnxpressError
from safetensors.numpy import save_file

# No two sizes are alike, queries are not divided by the square root of the head, and windows end within a text.
SIZES = {
    "vocab_size": 50,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 5,
    "rms_norm_eps": 1e-3,
    "rope_theta": 1000.0,
    "rope_local_base_freq": 10.0,
    "sliding_window": 7,
    "layer_types": [SLIDING, FULL],
}
JSON = {**SIZES, "model_type": "gemma3_text", "use_bidirectional_attention": True, "rope_scaling": None}
CONFIG = Gemma3Config(**{**SIZES, "layer_types": tuple(SIZES["layer_types"])})
IDENTITY = "torch.nn.modules.linear.Identity"


def random_weights() -> dict[str, np.ndarray]:
    """Numbers that bfloat16 holds, so that both types of a checkpoint say the same."""
    rng = np.random.default_rng(0)
    width, wide, head = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.head_dim
    queries, keys = CONFIG.num_attention_heads * head, CONFIG.num_key_value_heads * head
    shapes = {"embed_tokens.weight": (CONFIG.vocab_size, width), "norm.weight": (width,)}
    for i in range(CONFIG.num_hidden_layers):
        parts = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)}
        parts |= {"o_proj": (width, queries), "q_norm": (head,), "k_norm": (head,)}
        sizes = {f"self_attn.{name}": shape for name, shape in parts.items()}
        sizes |= {"mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width), "mlp.down_proj": (width, wide)}
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        sizes |= {f"{name}_layernorm": (width,) for name in norms}
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in sizes.items()}
    drawn = {name: rng.normal(0, 0.4, shape) for name, shape in shapes.items()}
    return {name: array.astype(ml_dtypes.bfloat16).astype(np.float32) for name, array in drawn.items()}


def random_dense() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    shapes = ((36, CONFIG.hidden_size), (12, 36))
    return tuple(rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes)


def forward(w, input_ids, attention_mask):
    """The encoder in float64, token by token and head by head, by the equations of the papers."""
    w = {name: array.astype(np.float64) for name, array in w.items()}

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2) + CONFIG.rms_norm_eps) * (1 + w[f"{name}.weight"])

    def turned(x, position, base):
        pairs = x[: CONFIG.head_dim // 2] + 1j * x[CONFIG.head_dim // 2 :]
        pairs = pairs * np.exp(1j * position * base ** (-2 * np.arange(len(pairs)) / CONFIG.head_dim))
        return np.concatenate([pairs.real, pairs.imag])

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attended(x, real, layer, kind):
        base = CONFIG.rope_local_base_freq if kind == SLIDING else CONFIG.rope_theta
        part = {name: x @ w[f"{layer}.self_attn.{name}_proj.weight"].T for name in "qkv"}
        part = {name: rows.reshape(len(x), -1, CONFIG.head_dim) for name, rows in part.items()}
        context = np.zeros_like(part["q"])
        for head in range(CONFIG.num_attention_heads):
            shared = head // (CONFIG.num_attention_heads // CONFIG.num_key_value_heads)
            for i in range(len(x)):
                query = turned(norm(part["q"][i, head], f"{layer}.self_attn.q_norm"), i, base)
                seen = [j for j in range(len(x)) if real[j] and (kind == FULL or abs(i - j) <= 3)]
                if not seen:
                    continue  # padding that sees padding alone
                keys = [turned(norm(part["k"][j, shared], f"{layer}.self_attn.k_norm"), j, base) for j in seen]
                powers = np.exp(np.array(keys) @ query / math.sqrt(CONFIG.query_pre_attn_scalar))
                context[i, head] = powers / powers.sum() @ part["v"][seen, shared]
        return context.reshape(len(x), -1) @ w[f"{layer}.self_attn.o_proj.weight"].T

    def rows(function, x, name):
        return np.array([function(row, name) for row in x])

    hidden = []
    for ids, real in zip(input_ids, attention_mask, strict=True):
        x = w["embed_tokens.weight"][ids] * math.sqrt(CONFIG.hidden_size)
        for i, kind in enumerate(CONFIG.layer_types):
            layer = f"layers.{i}"
            before = rows(norm, x, f"{layer}.input_layernorm")
            x = x + rows(norm, attended(before, real, layer, kind), f"{layer}.post_attention_layernorm")
            before = rows(norm, x, f"{layer}.pre_feedforward_layernorm")
            gate, up = (before @ w[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            fed = (gelu(gate) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
            x = x + rows(norm, fed, f"{layer}.post_feedforward_layernorm")
        hidden.append(rows(norm, x, "norm"))
    return np.array(hidden)


def vectors(hidden, attention_mask, dense, *, normalize=True):
    means = [rows[real == 1].mean(axis=0) for rows, real in zip(hidden, attention_mask, strict=True)]
    for weight in dense:
        means = [weight.astype(np.float64) @ mean for mean in means]
    return np.array([mean / np.linalg.norm(mean) if normalize else mean for mean in means])


def save_folder(folder, weights=None, dense=(), **config):
    """A model's folder as transformers and sentence-transformers write it, without modules.json."""
    (folder / "config.json").write_text(json.dumps(JSON | config))
    save_file(random_weights() if weights is None else weights, folder / "model.safetensors")
    for number, weight in enumerate(dense, 2):
        place = folder / f"{number}_Dense"
        place.mkdir()
        sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
        (place / "config.json").write_text(json.dumps({**sizes, "activation_function": IDENTITY}))
        save_file({"linear.weight": weight}, place / "model.safetensors")
    return folder


def save_modules(folder, *kinds):
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (folder / "modules.json").write_text(json.dumps(listed))


def feeds(batch, sequence):
    """Ids, and masks of texts of different lengths, one with its padding in front."""
    rng = np.random.default_rng(2)
    mask = (np.arange(sequence) < rng.integers(1, sequence + 1, (batch, 1))).astype(np.int64)
    mask[-1] = mask[-1][::-1]
    return {"input_ids": rng.integers(0, CONFIG.vocab_size, (batch, sequence)), "attention_mask": mask}


def run(path, inputs):
    return ort.InferenceSession(str(path)).run(["last_hidden_state", "sentence_embedding"], inputs)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_folder(tmp_path_factory.mktemp("gemma3"), dense=random_dense())
    gemma3.build_files(folder, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (3, 13), (2, 4)])
def test_equals_the_equations(model, batch, sequence):
    inputs = feeds(batch, sequence)
    hidden, vector = run(model, inputs)
    assert (hidden.dtype, vector.dtype) == (np.float32, np.float32)
    expected = forward(random_weights(), **inputs)
    real = inputs["attention_mask"] == 1
    np.testing.assert_allclose(hidden[real], expected[real], rtol=0, atol=2e-5)
    np.testing.assert_allclose(vector, vectors(expected, real, random_dense()), rtol=0, atol=2e-6)
    assert np.isfinite(hidden).all()


def test_padding_changes_nothing(model):
    inputs = feeds(2, 9)
    inputs["attention_mask"][:] = [[1] * 6 + [0] * 3] * 2
    alone = run(model, {name: rows[:, :6] for name, rows in inputs.items()})
    padded = run(model, inputs)
    np.testing.assert_allclose(padded[0][:, :6], alone[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(padded[1], alone[1], rtol=0, atol=1e-6)


def test_text_without_a_token_gives_zeros(model):
    inputs = {"input_ids": np.zeros((1, 5), np.int64), "attention_mask": np.zeros((1, 5), np.int64)}
    assert not run(model, inputs)[1].any()


def test_graph_is_valid_and_all_shapes_are_known():
    proto = ir.to_proto(gemma3.build(CONFIG, random_weights(), SentenceHead(random_dense())))
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in [*inferred.graph.value_info, *inferred.graph.output]}
    assert [d.dim_param or d.dim_value for d in shapes["last_hidden_state"]] == ["batch", "sequence", 20]
    assert [d.dim_param or d.dim_value for d in shapes["sentence_embedding"]] == ["batch", 12]
    assert {node.domain for node in proto.graph.node} == {""}
    assert proto.opset_import[0].version == 18
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names)
    product = next(node for node in proto.graph.node if node.name == "/layers.1/self_attn/k_proj/MatMul")
    assert product.input[1] == "layers.1.self_attn.k_proj.weight"


def test_runtime_fuses_norms_and_gelu(model, tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(model), options)
    found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node]
    assert found.count("SimplifiedLayerNormalization") == 2 * 6 + 1
    assert found.count("FastGelu") == 2
    assert "Pow" not in found


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_narrow_weights_are_widened(tmp_path, dtype):
    save_folder(tmp_path, {name: array.astype(dtype) for name, array in random_weights().items()})
    gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    inputs = feeds(2, 5)
    narrow = {name: array.astype(dtype).astype(np.float32) for name, array in random_weights().items()}
    real = inputs["attention_mask"] == 1
    expected = forward(narrow, **inputs)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", inputs)[0][real], expected[real], rtol=0, atol=2e-5)


def test_folder_of_a_transformer_alone_has_the_mean(tmp_path):
    save_folder(tmp_path)
    gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    inputs = feeds(3, 6)
    found = run(tmp_path / "model.onnx", inputs)[1]
    expected = vectors(forward(random_weights(), **inputs), inputs["attention_mask"], ())
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_modules_are_those_that_are_listed(tmp_path):
    """One dense layer of the two that lie there, and no division by the length."""
    save_folder(tmp_path, dense=random_dense())
    save_modules(tmp_path, ("Transformer", ""), ("Dense", "2_Dense"))
    gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    inputs = feeds(2, 6)
    expected = vectors(
        forward(random_weights(), **inputs), inputs["attention_mask"], random_dense()[:1], normalize=False
    )
    np.testing.assert_allclose(run(tmp_path / "model.onnx", inputs)[1], expected, rtol=0, atol=2e-5)


def test_wider_reach_is_seen(tmp_path):
    """Half a window of 6 is as far as that of 7; that of 8 is farther."""
    save_folder(tmp_path)
    inputs = feeds(1, 12) | {"attention_mask": np.ones((1, 12), np.int64)}
    found = []
    for window in (6, 7, 8):
        (tmp_path / "config.json").write_text(json.dumps(JSON | {"sliding_window": window}))
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")
        found.append(run(tmp_path / "model.onnx", inputs)[0])
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[1] - found[2]).max() > 1e-3


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model_type", "bert", "model_type is 'bert', only 'gemma3_text' is built"),
        ("use_bidirectional_attention", False, "use_bidirectional_attention is False, only True"),
        ("hidden_activation", "relu", "hidden_activation is 'relu'"),
        ("rope_scaling", {"rope_type": "linear"}, "rope_scaling is {'rope_type': 'linear'}, only None"),
        ("attention_bias", True, "attention_bias is True, only False"),
        ("attn_logit_softcapping", 50.0, "attn_logit_softcapping is 50.0"),
        ("head_dim", 7, "head_dim is 7"),
        ("head_dim", "8", "head_dim is '8', must be a number above 0"),
        ("hidden_size", 0, "hidden_size is 0, must be a number above 0"),
        ("num_key_value_heads", 4, "num_attention_heads is 6, no multiple of num_key_value_heads, which is 4"),
        ("num_hidden_layers", 3, "layer_types has 2 entries, num_hidden_layers is 3"),
        ("layer_types", [FULL, "chunked_attention"], "layer_types holds 'chunked_attention'"),
        ("layer_types", None, "layer_types is None, not a list"),
    ],
)
def test_other_networks_are_refused(tmp_path, key, value, told):
    save_folder(tmp_path, **{key: value})
    with pytest.raises(OnnxpressError, match=r"config.json: ") as caught:
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    assert told in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_missing_key_is_named(tmp_path):
    save_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in JSON.items() if k != "rope_theta"}))
    with pytest.raises(OnnxpressError, match=r"config.json: has no key 'rope_theta'$"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("text", "told"), [("{", "not a JSON file"), ("[]", "holds a JSON list"), (None, "cannot read")]
)
def test_config_that_is_none(tmp_path, text, told):
    save_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(OnnxpressError, match=rf"config.json: {told}"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers.1.mlp.up_proj.weight": None}, "no tensor 'layers.1.mlp.up_proj.weight'"),
        ({"norm.weight": np.zeros(21, np.float32)}, "'norm.weight' is float32 (21,), not float32 "),
        ({"norm.weight": np.zeros(20, np.int8)}, "tensor 'norm.weight' is I8, not one of F32, BF16, F16"),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, told):
    weights = random_weights() | change
    save_folder(tmp_path, {name: array for name, array in weights.items() if array is not None})
    with pytest.raises(OnnxpressError, match=r"model.safetensors: ") as caught:
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    assert told in str(caught.value)


def test_weights_that_are_none(tmp_path):
    save_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"something else that is long enough")
    with pytest.raises(OnnxpressError, match=r"model.safetensors: not a safetensors file"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OnnxpressError, match=r"model.safetensors: no such file"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("key", "value"), [("bias", True), ("activation_function", "torch.nn.modules.activation.Tanh"), ("in_features", 21)]
)
def test_other_dense_layers_are_refused(tmp_path, key, value):
    save_folder(tmp_path, dense=random_dense())
    path = tmp_path / "2_Dense/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(OnnxpressError, match=rf"2_Dense/config.json: {key} is "):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")


def test_dense_weights_of_another_shape_or_name(tmp_path):
    save_folder(tmp_path, dense=random_dense())
    save_file({"linear.weight": np.zeros((36, 19), np.float32)}, tmp_path / "2_Dense/model.safetensors")
    with pytest.raises(OnnxpressError, match=r"2_Dense/model.safetensors: tensor 'linear.weight' is \(36, 19\)"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    save_file({"weight": np.zeros((36, 20), np.float32)}, tmp_path / "2_Dense/model.safetensors")
    with pytest.raises(OnnxpressError, match=r"2_Dense/model.safetensors: has no tensor 'linear.weight'"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")


def test_other_modules_are_refused(tmp_path):
    save_folder(tmp_path)
    save_modules(tmp_path, ("Transformer", ""), ("LSTM", "1_LSTM"))
    with pytest.raises(OnnxpressError, match=r"1_LSTM: is a module 'LSTM'; only"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    save_modules(tmp_path, ("Transformer", ""), ("Normalize", "1_Normalize"), ("Dense", "2_Dense"))
    with pytest.raises(OnnxpressError, match=r"modules.json: lists 'Dense' behind 'Normalize'"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")
    (tmp_path / "modules.json").write_text('{"type": "Dense"}')
    with pytest.raises(OnnxpressError, match=r"modules.json: not a list of modules"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("modes", "told"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "asks for .* and "),
        ({"pooling_mode_max_tokens": True}, "asks for pooling_mode_max_tokens, only"),
        ({}, "asks for no pooling"),
    ],
)
def test_other_pooling_is_refused(tmp_path, modes, told):
    save_folder(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(modes))
    with pytest.raises(OnnxpressError, match=rf"1_Pooling/config.json: {told}"):
        gemma3.build_files(tmp_path, tmp_path / "model.onnx")


def test_command_exports_without_optimum(tmp_path, monkeypatch, capsys):
    source = tmp_path / "source"
    source.mkdir()
    save_folder(source)
    (source / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "optimum.exporters.onnx", None)
    command = runner(monkeypatch, capsys)
    code, out, _ = command("export", str(source), "-o", str(tmp_path / "out"))
    assert (code, out.strip()) == (0, str(tmp_path / "out"))
    assert {"config.json", "model.onnx", "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert run(tmp_path / "out/model.onnx", feeds(1, 4))[0].shape == (1, 4, 20)
    code, _, err = command("export", str(source), "-o", str(tmp_path / "other"), "--opset", "20")
    assert code == 1
    assert "export needs optimum" in err


def test_failed_export_leaves_nothing(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    save_folder(source, vocab_size=51)
    with pytest.raises(OnnxpressError, match=r"'embed_tokens.weight' is float32 \(50, 20\)"):
        export(str(source), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
