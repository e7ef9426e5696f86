from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.models import minilm
from onnxpress.optimizer.errors import OnnxpressError

CONFIG = minilm.BertConfig(
    vocab_size=50,
    max_position_embeddings=20,
    type_vocab_size=2,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    layer_norm_eps=1e-3,
)


def random_weights(config: minilm.BertConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    width, wide = config.hidden_size, config.intermediate_size
    shapes = {
        "embeddings.word_embeddings.weight": (config.vocab_size, width),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, width),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for i in range(config.num_hidden_layers):
        sizes = {"attention.self.query": (width, width), "attention.self.key": (width, width)}
        sizes |= {"attention.self.value": (width, width), "attention.output.dense": (width, width)}
        sizes |= {"intermediate.dense": (wide, width), "output.dense": (width, wide)}
        for name, shape in sizes.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.{part}": (width,) for part in ("weight", "bias")}
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    return weights | {"pooler.dense.weight": np.zeros((width, width), np.float32)}


def forward(config, w, input_ids, attention_mask, token_type_ids):
    """The encoder in float64, by the equations of the papers."""

    def linear(x, name):
        return x @ w[f"{name}.weight"].T.astype(np.float64) + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.layer_norm_eps)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x):
        return x.reshape(*x.shape[:2], config.num_attention_heads, -1).transpose(0, 2, 1, 3)

    x = w["embeddings.word_embeddings.weight"][input_ids] + w["embeddings.token_type_embeddings.weight"][token_type_ids]
    x = norm(x + w["embeddings.position_embeddings.weight"][: input_ids.shape[1]], "embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (heads(linear(x, f"{layer}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(config.hidden_size // config.num_attention_heads)
        scores = np.where(attention_mask[:, None, None, :] == 1, scores, -np.inf)
        probabilities = np.exp(scores - scores.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        context = (probabilities @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(linear(context, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner / 2 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(linear(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    return x


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return ir.to_proto(minilm.build(CONFIG, random_weights(CONFIG)))


@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (3, 7), (2, 20)])
def test_equals_the_equations(proto, batch, sequence):
    rng = np.random.default_rng(1)
    feeds = {
        "input_ids": rng.integers(0, CONFIG.vocab_size, (batch, sequence)),
        "attention_mask": (np.arange(sequence) < rng.integers(1, sequence + 1, (batch, 1))).astype(np.int64),
        "token_type_ids": rng.integers(0, 2, (batch, sequence)),
    }
    (hidden,) = ort.InferenceSession(proto.SerializeToString()).run(["last_hidden_state"], feeds)
    assert hidden.dtype == np.float32
    np.testing.assert_allclose(hidden, forward(CONFIG, random_weights(CONFIG), **feeds), rtol=0, atol=2e-5)


def test_graph_is_valid_and_all_shapes_are_known(proto):
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in [*inferred.graph.value_info, *inferred.graph.output]}
    for node in inferred.graph.node:
        for name in node.output:
            assert all(d.dim_value or d.dim_param for d in shapes[name]), name
    assert [d.dim_param or d.dim_value for d in shapes["last_hidden_state"]] == ["batch", "sequence", 24]


def test_nodes_and_weights_carry_the_names_of_the_modules(proto):
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names)
    nodes = {node.name: node for node in proto.graph.node}
    product = nodes["/encoder/layer.1/attention/self/query/MatMul"]
    assert product.input[1] == "encoder.layer.1.attention.self.query.weight"
    assert nodes["/encoder/layer.0/output/dense/MatMul"].output == ["/encoder/layer.0/output/dense/MatMul_output_0"]
    weights = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    assert weights["encoder.layer.0.intermediate.dense.weight"] == [24, 40]  # [K, N]
    assert not [name for name in weights if "pooler" in name]
    assert proto.opset_import[0].version == 18


def test_missing_weight_is_named():
    weights = random_weights(CONFIG)
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(OnnxpressError, match=r"no tensor 'encoder.layer.1.output.dense.bias'"):
        minilm.build(CONFIG, weights)


@pytest.mark.parametrize("wrong", [np.zeros((24, 40), np.float32), np.zeros((40, 24), np.float16)])
def test_weight_of_another_shape_or_type_is_named(wrong):
    weights = random_weights(CONFIG) | {"encoder.layer.0.intermediate.dense.weight": wrong}
    with pytest.raises(OnnxpressError, match=r"'encoder.layer.0.intermediate.dense.weight' is float(32|16) \("):
        minilm.build(CONFIG, weights)


def test_files(tmp_path):
    from safetensors.numpy import save_file

    save_file(random_weights(CONFIG), tmp_path / "w.safetensors")
    settings = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "hidden_act": "gelu", "model_type": "bert"}))
    minilm.build_files(tmp_path / "w.safetensors", tmp_path / "config.json", tmp_path / "model.onnx")
    assert len(onnx.load(tmp_path / "model.onnx").graph.node) == 11 + 34 * CONFIG.num_hidden_layers


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("model_type", "mpnet")])
def test_other_networks_are_refused(tmp_path, key, value):
    settings = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__} | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(OnnxpressError, match=f"{key} is '{value}'"):
        minilm.BertConfig.from_json(tmp_path / "config.json")


def test_heads_must_divide_the_width():
    with pytest.raises(OnnxpressError, match=r"hidden_size 24 .*num_attention_heads 5"):
        minilm.BertConfig(50, 20, 2, 24, 40, 2, 5, 1e-3)
