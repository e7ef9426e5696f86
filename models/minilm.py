"""all-MiniLM-L6-v2 as ONNX, built from its safetensors file without torch.

The network is the encoder of BERT (Devlin et al., 2018, arXiv:1810.04805, section 3; the layer is that of Vaswani et
al., 2017, arXiv:1706.03762, section 3.1) in the size of MiniLM (Wang et al., 2020, arXiv:2002.10957): 6 layers of
width 384. Modules carry the names of the checkpoint's tensors, so that weights are found by name and every node is
named after its module, as in "/encoder/layer.0/attention/self/query/MatMul". The pooler is left out: sentence
embeddings are means over `last_hidden_state`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxpress.optimizer.errors import OnnxpressError
from onnxscript import GraphBuilder, nn

from .building import load_weights, name_nodes

OPSET = 18
_IR_VERSION = 8  # the one that came with opset 18

# Added to the score of a padding token. exp() of it is 0 in float32, and unlike the lowest float32 it fits float16.
_PADDING_SCORE = -10000.0


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder, under the names of the checkpoint's config.json."""

    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise OnnxpressError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def from_json(cls, path: Path) -> BertConfig:
        """Read config.json.

        Raises:
            OnnxpressError: It describes another network than `build` builds.
        """
        config = json.loads(path.read_text("utf-8"))
        for key, supported in (
            ("model_type", "bert"),
            ("hidden_act", "gelu"),
            ("position_embedding_type", "absolute"),
        ):
            if config.get(key, supported) != supported:
                raise OnnxpressError(f"{path}: {key} is '{config[key]}', only '{supported}' is built")
        return cls(**{field: config[field] for field in cls.__dataclass_fields__})


class _Linear(nn.Module):
    """x @ weight + bias; the weight is [in, out], as MatMul wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([inputs, outputs])
        self.bias = nn.Parameter([outputs])

    def forward(self, op: Any, x: Any) -> Any:
        return op.Add(op.MatMul(x, self.weight), self.bias)


class _LayerNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter([width])
        self.bias = nn.Parameter([width])
        self.epsilon = epsilon

    def forward(self, op: Any, x: Any) -> Any:
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self.epsilon)


class _Embedding(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([rows, width])
        self.width = width

    def forward(self, op: Any, indices: Any) -> Any:
        return op.Gather(self.weight, indices, axis=0)


class _PositionEmbedding(_Embedding):
    """The first rows of the table, as many as the sequence of `input_ids` is long."""

    def forward(self, op: Any, input_ids: Any) -> Any:
        rows = op.Slice(self.weight, [0], op.Shape(input_ids, start=1, end=2), [0])
        rows.shape = ir.Shape([input_ids.shape[1], self.width])  # inference cannot tell
        return rows


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = _Embedding(config.vocab_size, width)
        self.position_embeddings = _PositionEmbedding(config.max_position_embeddings, width)
        self.token_type_embeddings = _Embedding(config.type_vocab_size, width)
        self.LayerNorm = _LayerNorm(width, config.layer_norm_eps)

    def forward(self, op: Any, input_ids: Any, token_type_ids: Any) -> Any:
        tokens = op.Add(self.word_embeddings(op, input_ids), self.token_type_embeddings(op, token_type_ids))
        return self.LayerNorm(op, op.Add(tokens, self.position_embeddings(op, input_ids)))


class _SelfAttention(nn.Module):
    """Scaled dot-product attention over several heads (Vaswani et al., equation 1)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.head_width = config.num_attention_heads, width // config.num_attention_heads
        self.query = _Linear(width, width)
        self.key = _Linear(width, width)
        self.value = _Linear(width, width)

    def forward(self, op: Any, x: Any, mask: Any) -> Any:
        split = [0, 0, self.heads, self.head_width]
        query = op.Transpose(op.Reshape(self.query(op, x), split), perm=[0, 2, 1, 3])
        key = op.Transpose(op.Reshape(self.key(op, x), split), perm=[0, 2, 3, 1])
        value = op.Transpose(op.Reshape(self.value(op, x), split), perm=[0, 2, 1, 3])
        scores = op.Add(op.Div(op.MatMul(query, key), math.sqrt(self.head_width)), mask)
        context = op.MatMul(op.Softmax(scores, axis=-1), value)
        return op.Reshape(op.Transpose(context, perm=[0, 2, 1, 3]), [0, 0, self.heads * self.head_width])


class _Output(nn.Module):
    """A projection, the residual and its normalization."""

    def __init__(self, inputs: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = _Linear(inputs, config.hidden_size)
        self.LayerNorm = _LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, op: Any, x: Any, residual: Any) -> Any:
        return self.LayerNorm(op, op.Add(self.dense(op, x), residual))


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Output(config.hidden_size, config)

    def forward(self, op: Any, x: Any, mask: Any) -> Any:
        return self.output(op, self.self(op, x, mask), x)


class _Intermediate(nn.Module):
    """A projection and the exact GELU, x / 2 * (1 + erf(x / sqrt 2)), in the form that runtimes know to fuse."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = _Linear(config.hidden_size, config.intermediate_size)

    def forward(self, op: Any, x: Any) -> Any:
        x = self.dense(op, x)
        return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0)), 0.5)


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Output(config.intermediate_size, config)

    def forward(self, op: Any, x: Any, mask: Any) -> Any:
        x = self.attention(op, x, mask)
        return self.output(op, self.intermediate(op, x), x)


class _Encoder(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, op: Any, x: Any, mask: Any) -> Any:
        for layer in self.layer:
            x = layer(op, x, mask)
        return x


class _Bert(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def forward(self, op: Any, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        padding = op.Sub(1.0, op.Cast(op.Unsqueeze(attention_mask, [1, 2]), to=ir.DataType.FLOAT))
        mask = op.Mul(padding, _PADDING_SCORE)
        return self.encoder(op, self.embeddings(op, input_ids, token_type_ids), mask)


def build(config: BertConfig, weights: Mapping[str, np.ndarray[Any, Any]]) -> ir.Model:
    """Build the encoder.

    Args:
        config: Its sizes.
        weights: float32 tensors under the checkpoint's names, such as "encoder.layer.0.output.dense.weight",
            projections as [out, in]. Others than those of the encoder are ignored.

    Returns:
        A model with int64 inputs `input_ids`, `attention_mask`, `token_type_ids` [batch, sequence] and the float32
        output `last_hidden_state` [batch, sequence, hidden_size].

    Raises:
        OnnxpressError: A weight is missing or does not have the shape or type that the config asks for.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="bert")
    builder = GraphBuilder(graph)
    inputs = [
        builder.input(name, ir.DataType.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    network = _Bert(config)
    load_weights(network, _transposed(weights))
    hidden = network(builder.op, *inputs)
    name_nodes(graph)
    hidden.shape = ir.Shape(["batch", "sequence", config.hidden_size])
    builder.add_output(hidden, "last_hidden_state")
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="onnxpress")


def _transposed(weights: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Projections as [in, out]; tables of embeddings stay as they are."""
    return {
        name: array.T if array.ndim == 2 and not name.startswith("embeddings.") else array
        for name, array in weights.items()
    }


def build_files(checkpoint: Path, config: Path, target: Path) -> None:
    """Write the ONNX model of a checkpoint.

    Args:
        checkpoint: Weights, safetensors.
        config: The checkpoint's config.json.
        target: The file to write.

    Raises:
        OnnxpressError: As `BertConfig.from_json` and `build`.
    """
    from safetensors.numpy import load_file

    ir.save(build(BertConfig.from_json(config), load_file(checkpoint)), target)
