"""Sizes of a Gemma-3 text encoder, from the config.json of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxpress.optimizer.errors import OnnxpressError

from .hub_folder import read_json

FULL, SLIDING = "full_attention", "sliding_attention"
_ATTENTION = "use_bidirectional_attention"
_MODEL_TYPE = "gemma3_text"

_BUILT: Mapping[str, tuple[object, object]] = {
    "model_type": (None, _MODEL_TYPE),
    _ATTENTION: (False, True),
    "hidden_activation": ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
    "attention_bias": (False, False),
    "rope_scaling": (None, None),
    "attn_logit_softcapping": (None, None),
}
"""Settings that can have one value here: what a config without the key means, and that value."""


@dataclass(frozen=True)
class Gemma3Config:
    """Sizes of the encoder, under the names of config.json.

    Attributes:
        vocab_size: Rows of the table of tokens.
        hidden_size: Width of the hidden states.
        intermediate_size: Inner width of the feed-forward part.
        num_hidden_layers: Layers.
        num_attention_heads: Heads of queries.
        num_key_value_heads: Heads of keys and values, which groups of heads of queries share.
        head_dim: Width of a head.
        query_pre_attn_scalar: Queries are divided by its square root.
        rms_norm_eps: Added to the mean square in all norms.
        rope_theta: Base of the rotary embedding in layers of full attention.
        rope_local_base_freq: The same in layers of sliding attention.
        sliding_window: Tokens that a layer of sliding attention reaches, half of them on each side.
        layer_types: "full_attention" or "sliding_attention", layer by layer.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    rms_norm_eps: float
    rope_theta: float
    rope_local_base_freq: float
    sliding_window: int
    layer_types: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the sizes fit each other.

        Raises:
            OnnxpressError: They do not.
        """
        for key, value in vars(self).items():
            kinds = {"int": int, "float": (int, float)}.get(str(self.__dataclass_fields__[key].type))
            if kinds and (isinstance(value, bool) or not isinstance(value, kinds) or value <= 0):  # type: ignore[arg-type]
                raise OnnxpressError(f"{key} is {value!r}, must be a number above 0")
        if self.head_dim % 2:
            raise OnnxpressError(f"head_dim is {self.head_dim}; the rotary embedding turns pairs, so it must be even")
        if self.num_attention_heads % self.num_key_value_heads:
            raise OnnxpressError(
                f"num_attention_heads is {self.num_attention_heads}, no multiple of num_key_value_heads, which is "
                f"{self.num_key_value_heads}"
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise OnnxpressError(
                f"layer_types has {len(self.layer_types)} entries, num_hidden_layers is {self.num_hidden_layers}"
            )
        for kind in self.layer_types:
            if kind not in (FULL, SLIDING):
                raise OnnxpressError(f"layer_types holds {kind!r}; only '{FULL}' and '{SLIDING}' are built")

    @property
    def reach(self) -> int:
        """Tokens on each side that a layer of sliding attention sees: half a window, rounded down."""
        return self.sliding_window // 2

    def rope_base(self, layer_type: str) -> float:
        """Base of the rotary embedding in layers of this type."""
        return self.rope_local_base_freq if layer_type == SLIDING else self.rope_theta

    @classmethod
    def from_json(cls, path: Path) -> Gemma3Config:
        """Read config.json, as transformers 4.56 and 4.57 write it.

        Raises:
            OnnxpressError: It is missing, lacks a key, or describes another network than `gemma3.build` builds.
        """
        config = read_json(path)
        for key, (otherwise, built) in _BUILT.items():
            if (value := config.get(key, otherwise)) != built:
                raise OnnxpressError(f"{path}: {key} is {value!r}, only {built!r} is built")
        missing = [key for key in cls.__dataclass_fields__ if key not in config]
        if missing:
            raise OnnxpressError(f"{path}: has no key {', '.join(map(repr, missing))}")
        values = {key: config[key] for key in cls.__dataclass_fields__}
        if not isinstance(values["layer_types"], list):
            raise OnnxpressError(f"{path}: layer_types is {values['layer_types']!r}, not a list")
        values["layer_types"] = tuple(values["layer_types"])
        try:
            return cls(**values)
        except OnnxpressError as error:
            raise OnnxpressError(f"{path}: {error}") from None


def describes_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a Gemma-3 text encoder, and of no decoder."""
    return config.get("model_type") == _MODEL_TYPE and config.get(_ATTENTION) is True
