"""What the tests with generated models share."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SETTINGS = settings(
    derandomize=True, deadline=None, max_examples=150, database=None, suppress_health_check=list(HealthCheck)
)
HUGE = 2**40
TYPES = (np.float32, np.float16, np.float64, np.int8, np.int32)


@st.composite
def spoiled(draw, array: np.ndarray) -> np.ndarray:
    """The same values with another shape or type, or some of them missing."""
    how = draw(st.sampled_from(["drop", "flat", "turn", "type", "empty", "axis"]))
    if how == "drop":
        axis = draw(st.integers(0, array.ndim - 1))
        return np.delete(array, -1, axis) if array.shape[axis] else array
    if how == "flat":
        return array.reshape(-1)
    if how == "turn":
        return np.ascontiguousarray(array.T)
    if how == "type":
        return array.astype(draw(st.sampled_from(TYPES)))
    if how == "empty":
        return array[:0]
    return array[None]


def close(got: np.ndarray, want: np.ndarray) -> bool:
    if np.issubdtype(got.dtype, np.integer):  # codes, which a tie may bring to either side
        return got.shape == want.shape and np.allclose(got, want, rtol=0, atol=1)
    rtol = 2e-2 if got.dtype == np.float16 else 2e-4
    return got.shape == want.shape and np.allclose(got.astype(np.float64), want, rtol=rtol, atol=rtol)
