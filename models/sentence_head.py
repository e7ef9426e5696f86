"""From hidden states to one vector a text, as the folders of sentence-transformers say it.

Such a folder numbers its modules: the transformer, the mean over tokens, perhaps dense layers, and the division by the
length (Reimers and Gurevych, 2019, arXiv:1908.10084, section 3). `modules.json` lists them; where it is missing, the
folders called "1_Pooling", "2_Dense" and so on are taken by their numbers, with a division by the length at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxpress.optimizer.errors import OnnxpressError
from onnxscript import nn

from .hub_folder import CONFIG, WEIGHTS, parse_json, read_json, read_weights

_MODULES = "modules.json"
_IDENTITY = "torch.nn.modules.linear.Identity"
_WEIGHT = "linear.weight"
_MODE, _MEAN = "pooling_mode_", "pooling_mode_mean_tokens"

# Least divisors, so that a text of padding alone gives zeros and no NaN.
_LEAST_COUNT, _LEAST_LENGTH = 1.0, 1e-12


@dataclass(frozen=True)
class SentenceHead:
    """What makes a vector of the hidden states of a text, behind their mean.

    Attributes:
        dense: float32 weights [out, in] of the dense layers, one behind the other; none has a bias or an activation.
        normalize: Whether the vector is divided by its length.
    """

    dense: tuple[np.ndarray[Any, Any], ...] = ()
    normalize: bool = True

    @classmethod
    def from_folder(cls, folder: Path, width: int) -> SentenceHead:
        """Read what a folder says.

        Args:
            folder: In the layout of sentence-transformers, or of a transformer alone, which has no dense layers.
            width: Of the hidden states.

        Raises:
            OnnxpressError: It lists a module that is not built, or the modules do not fit each other.
        """
        dense: list[np.ndarray[Any, Any]] = []
        normalize = False
        for kind, place in _modules(folder):
            if normalize:
                raise OnnxpressError(
                    f"{folder / _MODULES}: lists '{kind}' behind 'Normalize', which is built as the last"
                )
            if kind == "Dense":
                dense.append(_dense(place, dense[-1].shape[0] if dense else width))
            elif kind == "Pooling":
                _check_mean(place / CONFIG)
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                raise OnnxpressError(
                    f"{place}: is a module '{kind}'; only Transformer, Pooling, Dense and Normalize are built"
                )
        return cls(tuple(dense), normalize)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Modules in their order: what each is, and its folder."""
    listing = folder / _MODULES
    if not listing.is_file():
        named = [(path.name.partition("_"), path) for path in folder.glob("[0-9]*_*") if path.is_dir()]
        numbered = sorted((int(number), kind, path) for (number, _, kind), path in named if number.isdecimal())
        return [*((kind, path) for _, kind, path in numbered), ("Normalize", folder)]
    try:
        return [(each["type"].rpartition(".")[2], folder / each["path"]) for each in parse_json(listing)]
    except (TypeError, KeyError, AttributeError) as error:
        raise OnnxpressError(f"{listing}: not a list of modules, each with 'type' and 'path'") from error


def _check_mean(path: Path) -> None:
    """Refuse other ways from tokens to a text than the mean.

    Raises:
        OnnxpressError: The file asks for one.
    """
    modes = [key for key, chosen in read_json(path).items() if key.startswith(_MODE) and chosen is True]
    if modes != [_MEAN]:
        raise OnnxpressError(f"{path}: asks for {' and '.join(modes) or 'no pooling'}, only {_MEAN} is built")


def _dense(folder: Path, inputs: int) -> np.ndarray[Any, Any]:
    """The weight [out, in] of a dense layer.

    Raises:
        OnnxpressError: It has a bias, an activation, or other sizes than its config says or than come in.
    """
    path = folder / CONFIG
    config = read_json(path)
    for key, built in (("in_features", inputs), ("bias", False), ("activation_function", _IDENTITY)):
        if config.get(key) != built:
            raise OnnxpressError(f"{path}: {key} is {config.get(key)!r}, only {built!r} is built")
    weights, file = read_weights(folder / WEIGHTS), folder / WEIGHTS
    if _WEIGHT not in weights:
        raise OnnxpressError(f"{file}: has no tensor '{_WEIGHT}'")
    weight, shape = weights[_WEIGHT], (config.get("out_features"), inputs)
    if weight.shape != shape:
        raise OnnxpressError(f"{file}: tensor '{_WEIGHT}' is {weight.shape}, and {CONFIG} says {shape}")
    return weight


class _Dense(nn.Module):
    """x @ weight; the weight is [in, out], as MatMul wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([inputs, outputs])

    def forward(self, op: Any, x: Any) -> Any:
        return op.MatMul(x, self.weight)


class SentenceVector(nn.Module):
    """The mean of the hidden states of a text's tokens, the dense layers and the division by the length.

    Parameters are called "dense.0.weight" and so on, [in, out].
    """

    def __init__(self, head: SentenceHead) -> None:
        super().__init__()
        self.dense = nn.ModuleList([_Dense(weight.shape[1], weight.shape[0]) for weight in head.dense])
        self.normalize = head.normalize

    def forward(self, op: Any, hidden: Any, attention_mask: Any) -> Any:
        """From [batch, sequence, width] and int64 [batch, sequence] to [batch, outputs]."""
        counted = op.Cast(op.Unsqueeze(attention_mask, [2]), to=ir.DataType.FLOAT)
        total = op.ReduceSum(op.Mul(hidden, counted), [1], keepdims=0)
        vector = op.Div(total, op.Max(op.ReduceSum(counted, [1], keepdims=0), _LEAST_COUNT))
        for layer in self.dense:
            vector = layer(op, vector)
        if self.normalize:
            vector = op.Div(vector, op.Max(op.ReduceL2(vector, [1], keepdims=1), _LEAST_LENGTH))
        return vector
