"""What may follow a product."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def activate(
    x: npt.NDArray[np.floating], activation: str | None, gate: npt.NDArray[np.floating] | None = None
) -> npt.NDArray[np.float64]:
    """What may follow a product: activation(x) * gate.

    Args:
        x: float [...].
        activation: None, "relu", "silu" (x * sigmoid(x)), "gelu" (x * (1 + erf(x / sqrt(2))) / 2) or "gelu_tanh"
            (x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3))) / 2).
        gate: float of the shape of x, or None.

    Returns:
        float64 of the shape of x.
    """
    y = np.asarray(x, np.float64)
    if activation == "relu":
        y = np.where(y < 0, 0.0, y)
    elif activation == "silu":
        y = y * _sigmoid(y)
    elif activation == "gelu":
        y = y * np.array([math.erfc(-each / math.sqrt(2)) / 2 for each in y.ravel().tolist()]).reshape(y.shape)
    elif activation == "gelu_tanh":
        y = y * _sigmoid(2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))
    return y if gate is None else y * np.asarray(gate, np.float64)


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        result: npt.NDArray[np.float64] = 1 / (1 + np.exp(-x))
    return result
