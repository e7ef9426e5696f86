"""Layers of an encoder that drop tokens, in NumPy, text by text."""

from __future__ import annotations

import math

import numpy as np
from encoder_layers import LayerModel
from encoders import HEADS, HIDDEN, WIDTH

LEAST = 8
"""Tokens that stay of a share."""


class Naive:
    """A text alone, through layers that drop; nothing but what the paper says."""

    def __init__(self, case: LayerModel) -> None:
        self.case = case
        model = case.model()
        self.arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}

    def __call__(self, x: np.ndarray, lengths, is_input=False) -> list[np.ndarray]:
        """What the layers make of [tokens, HIDDEN], with those that left.

        With lengths as an input each layer but the last is one behind which tokens may leave.
        """
        here, made, states = list(range(len(x))), x.astype(np.float64), []
        stayed, whole = None, made.copy()  # what those that are here were when others left last
        for layer in range(self.case.layers):
            y, received = self._layer(made, f"layer.{layer}/" if layer else "")
            left = [i for i in range(len(x)) if i not in here]
            if left:
                state = whole.copy()
                state[left] = self._along_a_line(stayed, y, whole[left])
            else:
                state = y.copy()
            state[here] = y
            states.append(state)
            length = lengths[layer] if layer < len(lengths) else 1.0
            count = max(math.ceil(round(length * len(x), 6)), LEAST) if length <= 1 else length
            count = min(max(count, 1), len(here))
            made = y
            if layer < len(lengths) and (is_input or length != (1, *lengths)[layer]):
                first = here.index(0)
                order = sorted(range(len(here)), key=lambda i, r=received, f=first: (i != f, -r[i]))[:count]
                here, made = [here[i] for i in order], y[order]
                stayed, whole = made, state
        return states

    @staticmethod
    def _along_a_line(x, y, others):
        """What becomes of others, where x became y."""
        dx, dy = x - x.mean(0), y - y.mean(0)
        slope = (dx * dy).sum() / max((dx * dx).sum(), 1e-12)
        return y.mean(0) + slope * (others - x.mean(0))

    def _layer(self, x, scope):
        get = lambda name: self.arrays[scope + name].astype(np.float64)  # noqa: E731

        def product(name, x):
            return x @ get(f"{name}.W") + get(f"{name}.b")

        def norm(name, x):
            d = x - x.mean(1, keepdims=True)
            return d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-12) * get(f"{name}.scale") + get(f"{name}.shift")

        first = self.case.norm_first
        inner = norm("norm1", x) if first else x
        q, k, v = (product(name, inner).reshape(len(x), HEADS, WIDTH) for name in ("q", "key", "v2"))
        scores = np.einsum("qhw,khw->hqk", q, k) / math.sqrt(WIDTH)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        h = x + product("out", np.einsum("hqk,khw->qhw", shares, v).reshape(len(x), HIDDEN))
        h = h if first else norm("norm1", h)
        up = product("up", norm("norm2", h) if first else h)
        y = h + product("down", up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2))))
        return (y if first else norm("norm2", y)), shares.sum((0, 1))
