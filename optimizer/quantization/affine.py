# ruff: noqa
# mypy: ignore-errors
"""stand-in"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class AffineParameters:
    scale: np.ndarray
    zero_point: np.ndarray

    def quantize(self, x: np.ndarray) -> np.ndarray:
        i = np.iinfo(self.zero_point.dtype)
        return np.clip(np.rint(x / self.scale) + self.zero_point, i.min, i.max).astype(self.zero_point.dtype)


@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    error: float = 0


def parameters_of_range(low: float, high: float, dtype: object, symmetric: bool = False) -> AffineParameters:
    low, high = min(low, 0.0), max(high, 0.0)
    i = np.iinfo(dtype)
    if symmetric:
        m = max(-low, high)
        low, high = -m, m
    s = np.float32((high - low) / (i.max - i.min)) or np.float32(1)
    z = np.clip(np.rint(i.min - low / s), i.min, i.max)
    return AffineParameters(np.asarray(s, np.float32), np.asarray(z, dtype))


def quantize_weight(w, axis, search=True, reduce_range=False):
    m = 63 if reduce_range else 127
    ax = tuple(i for i in range(w.ndim) if i != axis)
    s = np.abs(w).max(axis=ax) / m
    s = np.where(s == 0, 1, s).astype(np.float32)
    shape = [1] * w.ndim
    shape[axis] = -1
    c = np.clip(np.rint(w / s.reshape(shape)), -m, m).astype(np.int8)
    return QuantizedTensor(c, s, np.zeros(len(s), np.int8))


def quantize_bias(b: np.ndarray, sx: np.ndarray, sw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = (sx * sw).astype(np.float32)
    return np.clip(np.rint(b / s), -(2**31) + 1, 2**31 - 1).astype(np.int32), s
