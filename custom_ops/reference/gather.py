"""Op `com.microsoft::GatherBlockQuantized`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def gather_rows(
    codes: npt.NDArray[np.integer],
    indices: npt.NDArray[np.integer],
    scales: npt.NDArray[np.floating],
    zero_points: npt.NDArray[np.integer],
    block_size: int,
) -> npt.NDArray[np.floating]:
    """Op `com.microsoft::GatherBlockQuantized` of a matrix, by its rows.

    Args:
        codes: integer [rows, columns], unpacked.
        indices: integer [...]; negative ones count from the end.
        scales: float [rows, n_blocks].
        zero_points: integer [rows, n_blocks], unpacked.
        block_size: Columns that share a scale.

    Returns:
        [..., columns] of the type of scales: (code - zero_point) * scale, computed in float32.

    Raises:
        IndexError: An index is beyond the table. ONNX Runtime gives zeros there, Gather of the float table an error.
    """
    columns = codes.shape[1]
    offsets = np.repeat(zero_points.astype(np.int32), block_size, axis=1)[:, :columns]
    scale = np.repeat(scales.astype(np.float32), block_size, axis=1)[:, :columns]
    table = ((codes.astype(np.int32) - offsets).astype(np.float32) * scale).astype(scales.dtype)
    taken: npt.NDArray[np.floating] = table[indices]
    return taken
