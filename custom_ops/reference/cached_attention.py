"""Attention of new tokens on what is kept of those before, as `com.microsoft::GroupQueryAttention` has it.

    y = softmax(cap(scale q k') + bias) v,  cap(x) = softcap tanh(x / softcap)

of the keys up to the token's own (of all where it is not causal) and, with a window, no more than so many of them.
Groups of query heads share a head of keys and values. Queries and keys are rotated first (Su et al., 2021,
arXiv:2104.09864), and normalized ahead of that (Zhang and Sennrich, 2019, arXiv:1910.07467).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .types import Float32

Lengths = npt.NDArray[np.int64]
Tables = tuple[Float32, Float32, "Lengths | None"]


def rotate(x: Float32, cosines: Float32, sines: Float32, interleaved: bool) -> Float32:
    """Rotary position embeddings.

    Args:
        x: [..., head_size].
        cosines: Of the angles, [..., size / 2], which broadcasts the lead of x. Numbers from `size` on stay.
        sines: The same.
        interleaved: Whether pairs are neighbours, or halves of the first `size` numbers.
    """
    half: int = cosines.shape[-1]
    y: Float32 = x.copy()
    one = np.s_[..., 0 : 2 * half : 2] if interleaved else np.s_[..., :half]
    two = np.s_[..., 1 : 2 * half : 2] if interleaved else np.s_[..., half : 2 * half]
    y[one] = x[one] * cosines - x[two] * sines
    y[two] = x[two] * cosines + x[one] * sines
    return y


def normalize(x: Float32, scale: Float32, epsilon: float) -> Float32:
    """Norm by the root mean square along the last axis, x / sqrt(mean(x^2) + epsilon) * scale."""
    wide = x.astype(np.float64)
    normalized = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + epsilon)
    scaled: Float32 = (normalized * scale).astype(np.float32)
    return scaled


def cached_attention(
    query: Float32, key: Float32, value: Float32, past_key: Float32, past_value: Float32, kept: Lengths, total: Lengths,
    *, present_size: int, scale: float = 1.0, softcap: float = 0.0, window: int = 0, bias: Float32 | None = None,
    sinks: Float32 | None = None, rotation: Tables | None = None, interleaved: bool = False, causal: bool = True,
    norms: tuple[Float32, Float32, float] | None = None,
) -> tuple[Float32, Float32, Float32]:  # fmt: skip
    """Attention with a cache.

    Args:
        query: [batch, tokens, heads, head_size].
        key: [batch, new keys, kv_heads, head_size], as many as tokens where it is causal.
        value: The same.
        past_key: [batch, kv_heads, past_size, head_size], of which the first `kept` count.
        past_value: The same.
        kept: int64 [batch].
        total: int64 [batch], the keys that there are, up to kept + new keys.
        present_size: Tokens that the new cache has room for.
        scale: What scores are multiplied by.
        softcap: What they cannot exceed; 0 for no bound.
        window: Keys that a query sees at most; 0 for all.
        bias: [batch, heads, tokens, present_size], or none.
        sinks: [heads], logarithms of what is added to the denominator of the softmax, or none.
        rotation: Cosines and sines [positions, size / 2], and the position of each token, int64 [batch, tokens]; none
            for the place behind what is kept.
        interleaved: Whether pairs of the rotation are neighbours.
        causal: Whether a token sees no key behind its own.
        norms: Scales of the norms of heads of queries and of keys, [head_size] each, and epsilon; none for no norm.

    Returns:
        The output [batch, tokens, heads, head_size], and keys and values [batch, kv_heads, present_size, head_size].
    """
    batch, tokens, heads, head_size = query.shape
    new_keys, kv_heads = key.shape[1:3]
    if norms is not None:
        query, key = (normalize(x, scale, norms[2]) for x, scale in zip((query, key), norms[:2], strict=True))
    if rotation is not None:
        cosines, sines, positions = rotation
        if positions is None:
            positions = kept[:, None] + np.arange(tokens)
        query, key = (
            rotate(x, cosines[positions][:, :, None], sines[positions][:, :, None], interleaved) for x in (query, key)
        )
    keys = np.zeros((batch, kv_heads, present_size, head_size), np.float32)
    values, y = np.zeros_like(keys), np.zeros_like(query)
    for row in range(batch):
        first = int(kept[row])
        for new, past, present in ((key, past_key, keys), (value, past_value, values)):
            present[row, :, :first] = past[row, :, :first]
            present[row, :, first : first + new_keys] = new[row].swapaxes(0, 1)
        for token in range(tokens):
            end = min(first + token + 1, int(total[row])) if causal else int(total[row])
            seen = np.s_[max(end - window, 0) if window else 0 : end]
            for head in range(heads):
                of_head = head * kv_heads // heads
                scores = np.float64(scale) * (keys[row, of_head, seen] @ query[row, token, head])
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                if bias is not None:
                    scores = scores + bias[row, head, token, seen]
                sink = [] if sinks is None else [sinks[head]]
                weights = np.exp(scores - np.max([*scores, *sink]))
                denominator = weights.sum() + sum(np.exp(s - np.max([*scores, *sink])) for s in sink)
                y[row, token, head] = weights / denominator @ values[row, of_head, seen]
    return y, keys, values
