"""Text encoders of the family Gemma 3 as ONNX, such as EmbeddingGemma, built from their folder without torch.

The network is that of the Gemma 3 report (Gemma Team, 2025, arXiv:2503.19786, section 2) with attention in both
directions, as in EmbeddingGemma (Schechter Vera et al., 2025, arXiv:2509.20354, section 2):

- RMSNorm (Zhang and Sennrich, 2019, arXiv:1910.07467, equation 4) whose weight is stored less 1, before and behind
  attention and feed-forward part, and on the queries and keys of each head;
- groups of heads of queries that share keys and values (Ainslie et al., 2023, arXiv:2305.13245, section 2.2);
- rotary embedding (Su et al., 2021, arXiv:2104.09864, equation 34) of the pairs (i, i + head_dim / 2);
- layers that see all tokens, and layers that see those at most half a window away, each kind with its own base;
- GEGLU (Shazeer, 2020, arXiv:2002.05202, equation 6) with the tanh form of GELU.

Modules carry the names of the checkpoint's tensors, so that weights are found by name and every node is named after its
module, as in "/layers.0/self_attn/q_proj/MatMul".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.model_io import storage
from onnxscript import GraphBuilder, nn

from .building import load_weights, name_nodes
from .gemma3_config import SLIDING, Gemma3Config
from .hub_folder import CONFIG, WEIGHTS, read_weights
from .sentence_head import SentenceHead, SentenceVector

OPSET = 18
_IR_VERSION = 8  # the one that came with opset 18
_TABLE = "embed_tokens.weight"

# Added to the score of a token that is not seen. exp() of it is 0 in float32, and it fits float16.
_UNSEEN = -10000.0


class _Linear(nn.Module):
    """x @ weight; the weight is [in, out], as MatMul wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([inputs, outputs])

    def forward(self, op: Any, x: Any) -> Any:
        return op.MatMul(x, self.weight)


class _RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight, in the form that runtimes know to fuse."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter([width])
        self.epsilon = epsilon

    def forward(self, op: Any, x: Any) -> Any:
        mean = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
        return op.Mul(op.Div(x, op.Sqrt(op.Add(mean, self.epsilon))), self.weight)


class _Embedding(nn.Module):
    """Rows of the table, times the square root of their width."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([rows, width])
        self.scale = math.sqrt(width)

    def forward(self, op: Any, indices: Any) -> Any:
        return op.Mul(op.Gather(self.weight, indices, axis=0), self.scale)


class _Place:
    """What layers of one kind share: which tokens see which, and by how much positions turn the pairs of a head.

    Attributes:
        mask: Added to scores [batch, heads, queries, keys]; of sizes that are broadcast to them.
        cosine: [sequence, head_dim / 2].
        sine: The same.
    """

    def __init__(self, op: Any, config: Gemma3Config, kind: str, attention_mask: Any) -> None:
        seen = op.Unsqueeze(op.Cast(attention_mask, to=ir.DataType.BOOL), [1, 2])
        length = op.Squeeze(op.Shape(attention_mask, start=1, end=2), [0])
        positions = op.Range(0, length, 1)
        if kind == SLIDING:
            apart = op.Abs(op.Sub(op.Unsqueeze(positions, [1]), op.Unsqueeze(positions, [0])))
            seen = op.And(seen, op.LessOrEqual(apart, config.reach))
        self.mask = op.Where(seen, 0.0, _UNSEEN)
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        frequencies = (config.rope_base(kind) ** -exponents).astype(np.float32)
        angles = op.Mul(op.Unsqueeze(op.Cast(positions, to=ir.DataType.FLOAT), [1]), frequencies.tolist())
        self.cosine, self.sine = op.Cos(angles), op.Sin(angles)

    def turn(self, op: Any, x: Any) -> Any:
        """Turn the pairs (i, i + head_dim / 2) of [..., sequence, head_dim] by the angles of their positions."""
        first, second = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
        return op.Concat(
            op.Sub(op.Mul(first, self.cosine), op.Mul(second, self.sine)),
            op.Add(op.Mul(second, self.cosine), op.Mul(first, self.sine)),
            axis=-1,
        )


class _Attention(nn.Module):
    """Scaled dot-product attention; heads are [batch, heads, sequence, head_dim], those of keys as many or one."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        width, self.head = config.hidden_size, config.head_dim
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = config.query_pre_attn_scalar**-0.5
        self.q_proj = _Linear(width, config.num_attention_heads * self.head)
        self.k_proj = _Linear(width, self.key_heads * self.head)
        self.v_proj = _Linear(width, self.key_heads * self.head)
        self.o_proj = _Linear(config.num_attention_heads * self.head, width)
        self.q_norm = _RMSNorm(self.head, config.rms_norm_eps)
        self.k_norm = _RMSNorm(self.head, config.rms_norm_eps)

    def forward(self, op: Any, x: Any, place: _Place) -> Any:
        query = self._heads(op, self.q_norm(op, self._apart(op, self.q_proj(op, x), self.heads)))
        key = self._heads(op, self.k_norm(op, self._apart(op, self.k_proj(op, x), self.key_heads)))
        value = self._heads(op, self._apart(op, self.v_proj(op, x), self.key_heads))
        query, key = place.turn(op, query), self._shared(op, place.turn(op, key))
        scores = op.MatMul(op.Mul(query, self.scale), op.Transpose(key, perm=[0, 1, 3, 2]))
        context = op.MatMul(op.Softmax(op.Add(scores, place.mask), axis=-1), self._shared(op, value))
        together = op.Transpose(context, perm=[0, 2, 1, 3])
        return self.o_proj(op, op.Reshape(together, [0, 0, self.heads * self.head]))

    def _apart(self, op: Any, x: Any, heads: int) -> Any:
        return op.Reshape(x, [0, 0, heads, self.head])

    def _shared(self, op: Any, x: Any) -> Any:
        """Each head of keys or values for its group of queries; a single one is broadcast as it is."""
        if self.key_heads in (1, self.heads):
            return x
        group = self.heads // self.key_heads
        repeated = op.Expand(op.Unsqueeze(x, [2]), [1, 1, group, 1, 1])
        sizes = op.Concat(op.Shape(x, start=0, end=1), [self.heads], op.Shape(x, start=2, end=4), axis=0)
        return op.Reshape(repeated, sizes)

    @staticmethod
    def _heads(op: Any, x: Any) -> Any:
        return op.Transpose(x, perm=[0, 2, 1, 3])


class _FeedForward(nn.Module):
    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        self.gate_proj = _Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = _Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = _Linear(config.intermediate_size, config.hidden_size)

    def forward(self, op: Any, x: Any) -> Any:
        return self.down_proj(op, op.Mul(_gelu(op, self.gate_proj(op, x)), self.up_proj(op, x)))


def _gelu(op: Any, x: Any) -> Any:
    """The tanh form of GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415, section 2).

    x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
    """
    inner = op.Mul(op.Add(x, op.Mul(op.Pow(x, 3.0), 0.044715)), math.sqrt(2 / math.pi))
    return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(inner), 1.0))


class _Layer(nn.Module):
    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = _RMSNorm(width, epsilon)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _RMSNorm(width, epsilon)
        self.pre_feedforward_layernorm = _RMSNorm(width, epsilon)
        self.mlp = _FeedForward(config)
        self.post_feedforward_layernorm = _RMSNorm(width, epsilon)

    def forward(self, op: Any, x: Any, place: _Place) -> Any:
        attended = self.self_attn(op, self.input_layernorm(op, x), place)
        x = op.Add(x, self.post_attention_layernorm(op, attended))
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        return op.Add(x, self.post_feedforward_layernorm(op, fed))


class _Encoder(nn.Module):
    def __init__(self, config: Gemma3Config, head: SentenceHead) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.sentence = SentenceVector(head)

    def forward(self, op: Any, input_ids: Any, attention_mask: Any) -> Any:
        config = self.config
        places = {kind: _Place(op, config, kind, attention_mask) for kind in sorted(set(config.layer_types))}
        x = self.embed_tokens(op, input_ids)
        for layer, kind in zip(self.layers, config.layer_types, strict=True):
            x = layer(op, x, places[kind])
        hidden = self.norm(op, x)
        return hidden, self.sentence(op, hidden, attention_mask)


def build(
    config: Gemma3Config, weights: Mapping[str, np.ndarray[Any, Any]], head: SentenceHead | None = None
) -> ir.Model:
    """Build the encoder.

    Args:
        config: Its sizes.
        weights: float32 tensors under the checkpoint's names, such as "layers.0.self_attn.q_proj.weight", projections
            as [out, in], norms less 1. Others than those of the encoder are ignored.
        head: What makes the sentence's vector; by default the mean, divided by its length.

    Returns:
        A model of opset 18 with int64 inputs `input_ids` and `attention_mask` [batch, sequence], 1 for tokens and 0 for
        padding, and the float32 outputs `last_hidden_state` [batch, sequence, hidden_size] and `sentence_embedding`
        [batch, outputs of the last dense layer].

    Raises:
        OnnxpressError: A weight is missing or does not have the shape or type that the config asks for.
    """
    head = head or SentenceHead()
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="gemma3")
    builder = GraphBuilder(graph)
    inputs = [builder.input(name, ir.DataType.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    network = _Encoder(config, head)
    dense = {f"sentence.dense.{i}.weight": weight.T for i, weight in enumerate(head.dense)}
    load_weights(network, {**{name: _prepared(name, array) for name, array in weights.items()}, **dense})
    hidden, vector = network(builder.op, *inputs)
    name_nodes(graph)
    hidden.shape = ir.Shape(["batch", "sequence", config.hidden_size])
    vector.shape = ir.Shape(["batch", head.dense[-1].shape[0] if head.dense else config.hidden_size])
    builder.add_output(hidden, "last_hidden_state")
    builder.add_output(vector, "sentence_embedding")
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="onnxpress")


def _prepared(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Projections as [in, out] and norms as what they multiply by; the table of tokens stays as it is."""
    if name == _TABLE:
        return array
    prepared: np.ndarray[Any, Any] = array.T if array.ndim == 2 else np.float32(1) + array
    return prepared


def build_files(folder: Path, target: Path) -> None:
    """Write the ONNX model of a folder in Hugging Face's layout, its weights in a file of their own beside it.

    Args:
        folder: With config.json and model.safetensors, and what sentence-transformers adds: see `SentenceHead`.
        target: The file to write.

    Raises:
        UsageError: The target cannot be written.
        OnnxpressError: As `Gemma3Config.from_json`, `read_weights`, `SentenceHead.from_folder` and `build`.
    """
    config = Gemma3Config.from_json(folder / CONFIG)
    head = SentenceHead.from_folder(folder, config.hidden_size)
    try:
        model = build(config, read_weights(folder / WEIGHTS), head)
    except OnnxpressError as error:
        raise OnnxpressError(f"{folder / WEIGHTS}: {error}") from error
    # Apart from the model file, weights are mapped by what reads it, and never all in memory.
    storage.save(model, target, external=True)
