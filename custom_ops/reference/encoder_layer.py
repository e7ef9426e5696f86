"""Op `onnxpress::EncoderLayer`: a layer of a transformer encoder on 8-bit integers.

Norms behind the residual sums (Vaswani et al., 2017, arXiv:1706.03762), or ahead of the products (`norm_first`):

    h = norm1(x + attention(x) Wo + bo)          h = x + attention(norm1(x)) Wo + bo
    y = norm2(h + act(h Wup + bup) Wdown + bdown)    y = h + act(norm2(h) Wup + bup) Wdown + bdown

What a product reads is rounded row by row, and what the attention multiplies too, see `attention`. Tokens that the mask
leaves out are as if they were not there; their outputs are 0. The second output, `significance`, is optional.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from .activations import activate
from .types import Float32

Codes = npt.NDArray[np.int8]

_LEAST = np.float32(1e-30)
"""Of scales: their inverses are finite."""


@dataclasses.dataclass(frozen=True)
class Product:
    """An int8 weight.

    Attributes:
        codes: int8 [K, N].
        scales: float32 [N].
        bias: float32 [N].
    """

    codes: Codes
    scales: Float32
    bias: Float32


@dataclasses.dataclass(frozen=True)
class EncoderLayer:
    """Weights and settings of a layer.

    Attributes:
        heads: How many, of equal width.
        scale: What scores are multiplied by.
        qkv: [H, 3 heads * width]: queries, keys and values, head by head.
        out: [heads * width, H].
        up: [H, F].
        down: [F, H].
        norm1: Factor and summand of the first norm, float32 [2, H].
        norm2: Of the second.
        epsilon: What norms add to the variance.
        activation: "relu", "gelu" or "gelu_tanh".
        norm_first: Whether norms are ahead of the products.
    """

    heads: int
    scale: float
    qkv: Product
    out: Product
    up: Product
    down: Product
    norm1: Float32
    norm2: Float32
    epsilon: float = 1e-12
    activation: str = "gelu"
    norm_first: bool = False


def round_rows(x: Float32) -> tuple[npt.NDArray[np.uint8], Float32, npt.NDArray[np.int32]]:
    """Rows to uint8 over the range from their least to their greatest number, with 0 in it.

    Args:
        x: [M, K].

    Returns:
        Codes [M, K], scales [M] and zero points [M] such that x = scale (code - zero point), nearly. The scale of a
        row that is not finite is NaN.
    """
    low, high = x.min(axis=1, initial=0), x.max(axis=1, initial=0)
    finite = np.asarray(np.isfinite(x).all(axis=1))
    with np.errstate(invalid="ignore"):
        scale = np.maximum(high / np.float32(255) - low / np.float32(255), _LEAST)
        scale = np.where(finite, scale, np.float32(np.nan))
        point = np.where(finite, np.rint(-low / scale), 0).astype(np.int32)
        codes = np.clip(np.rint(x / scale[:, None]) + point[:, None], 0, 255)
    return np.where(finite[:, None], codes, 0).astype(np.uint8), scale, point


def round_signed(x: Float32, axis: int) -> tuple[Codes, Float32]:
    """To int8 along an axis, the largest magnitude to 127; codes of 0 and the scale NaN where one is not finite."""
    peak = np.maximum(np.abs(x).max(axis=axis, keepdims=True), _LEAST)
    finite = np.isfinite(x).all(axis=axis, keepdims=True)
    with np.errstate(invalid="ignore"):
        codes = np.where(finite, np.rint(x * (np.float32(127) / peak)), 0).astype(np.int8)
        return codes, np.where(finite, peak / np.float32(127), np.float32(np.nan))


def attention(q: Float32, k: Float32, v: Float32, scale: float) -> Float32:
    """softmax(scale q k') v of one head of one sequence, on codes.

    Queries and keys are rounded to int8 row by row, values channel by channel, and e^(score - largest score) to
    255ths, whose sum then divides.

    Args:
        q: [queries, width].
        k: [keys, width].
        v: [keys, width].
        scale: What scores are multiplied by.

    Returns:
        [queries, width].
    """
    v_codes, v_scales = round_signed(v, 0)
    e = _powers(q, k, scale)
    codes = np.rint(np.nan_to_num(e) * np.float32(255)).astype(np.int32)
    poison = np.where(np.isfinite(e).all(axis=1, keepdims=True), np.float32(1), np.float32(np.nan))
    with np.errstate(divide="ignore"):
        inverse = poison / codes.sum(axis=1, keepdims=True).astype(np.float32)
    context: Float32 = (codes @ v_codes.astype(np.int32)).astype(np.float32) * (inverse * v_scales)
    return context


def _powers(q: Float32, k: Float32, scale: float) -> Float32:
    """e^(score - largest score), [queries, keys]."""
    (q_codes, q_scales), (k_codes, k_scales) = round_signed(q, 1), round_signed(k, 1)
    sums = q_codes.astype(np.int32) @ k_codes.astype(np.int32).T
    scores = sums.astype(np.float32) * (q_scales * np.float32(scale)) * k_scales.T
    e: Float32 = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e


def encoder_layer(x: Float32, mask: npt.NDArray[np.integer] | None, layer: EncoderLayer) -> Float32:
    """A layer.

    Args:
        x: [batch, sequence, H].
        mask: [batch, sequence], 0 where a token does not count; None where all do.
        layer: What it is made of.

    Returns:
        [batch, sequence, H], zeros where a token does not count.
    """
    y = np.zeros_like(x)
    for index, tokens in enumerate(x):
        counted = slice(None) if mask is None else mask[index] != 0
        if len(tokens[counted]):
            y[index, counted] = _layer(tokens[counted], layer)
    return y


def encoder_significance(x: Float32, mask: npt.NDArray[np.integer] | None, layer: EncoderLayer) -> Float32:
    """How much attention each token receives: its part of the softmax, summed over heads and the queries that count.

    Args:
        x: [batch, sequence, H].
        mask: [batch, sequence], 0 where a token does not count; None where all do.
        layer: What the layer is made of.

    Returns:
        [batch, sequence], zeros where a token does not count.
    """
    received = np.zeros(x.shape[:2], np.float32)
    for index, tokens in enumerate(x):
        counted = slice(None) if mask is None else mask[index] != 0
        if len(tokens[counted]):
            q, k, _ = _heads(tokens[counted], layer)
            powers = [_powers(q[head], k[head], layer.scale) for head in range(layer.heads)]
            received[index, counted] = sum((e / e.sum(axis=1, keepdims=True)).sum(axis=0) for e in powers)
    return received


def _layer(x: Float32, layer: EncoderLayer) -> Float32:
    h = x + _product(_attend(x, layer), layer.out)
    if layer.norm_first:
        return h + _mlp(_norm(h, layer.norm2, layer), layer)
    h = _norm(h, layer.norm1, layer)
    return _norm(h + _mlp(h, layer), layer.norm2, layer)


def _mlp(x: Float32, layer: EncoderLayer) -> Float32:
    return _product(activate(_product(x, layer.up), layer.activation).astype(np.float32), layer.down)


def _attend(x: Float32, layer: EncoderLayer) -> Float32:
    q, k, v = _heads(x, layer)
    heads = [attention(q[head], k[head], v[head], layer.scale) for head in range(layer.heads)]
    return np.concatenate(heads, axis=1)


def _heads(x: Float32, layer: EncoderLayer) -> Float32:
    """Queries, keys and values, [3, heads, tokens, width]."""
    read = _norm(x, layer.norm1, layer) if layer.norm_first else x
    parts: Float32 = _product(read, layer.qkv).reshape(len(x), 3, layer.heads, -1).transpose(1, 2, 0, 3)
    return parts


def _product(x: Float32, product: Product) -> Float32:
    codes, scales, points = round_rows(x)
    sums = (codes.astype(np.int32) - points[:, None]) @ product.codes.astype(np.int32)
    y: Float32 = sums.astype(np.float32) * (scales[:, None] * product.scales) + product.bias
    return y


def _norm(x: Float32, norm: Float32, layer: EncoderLayer) -> Float32:
    difference = x - x.mean(axis=1, keepdims=True, dtype=np.float32)
    variance = np.square(difference).mean(axis=1, keepdims=True, dtype=np.float32)
    y: Float32 = difference * (np.float32(1) / np.sqrt(variance + np.float32(layer.epsilon))) * norm[0] + norm[1]
    return y
