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


def gated_linear_unit(x: npt.NDArray[np.floating], activation: str | None, half: int) -> npt.NDArray[np.float64]:
    """The activation of one half of the columns, times the other half (Shazeer 2020, arXiv 2002.05202).

    Args:
        x: float [M, 2 * N].
        activation: As of `activate`.
        half: 0 or 1, the half that is activated.

    Returns:
        float64 [M, N].
    """
    parts = np.split(np.asarray(x, np.float64), 2, axis=-1)
    return activate(parts[half], activation, parts[1 - half])


def rms_norm(x: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], epsilon: float) -> npt.NDArray[np.float32]:
    """Divide rows by their root mean square: x / sqrt(mean of x^2 + epsilon) * scale (arXiv 1910.07467, equation 4).

    Args:
        x: float32 [..., K].
        scale: float32 [K].
        epsilon: What is added to the mean.

    Returns:
        float32 of the shape of x, computed in float64 and rounded once.
    """
    wide = np.asarray(x, np.float64)
    squares: npt.NDArray[np.float64] = np.mean(wide**2, axis=-1, keepdims=True)
    return (wide / np.sqrt(squares + epsilon) * scale).astype(np.float32)


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        result: npt.NDArray[np.float64] = 1 / (1 + np.exp(-x))
    return result
