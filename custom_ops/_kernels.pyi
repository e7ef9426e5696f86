import numpy as np
import numpy.typing as npt

def quantize_blocks(
    weight: npt.NDArray[np.floating],
    transposed: bool,
    bits: int,
    block_size: int,
    symmetric: bool,
    search: bool,
    scale_type: str,
    columns: tuple[int, int],
    packed: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
    zero_points: npt.NDArray[np.uint8],
    importance: npt.NDArray[np.float32] | None = None,
    isa: str | None = None,
) -> tuple[float, float, float, float]: ...
def unpack_codes(packed: npt.NDArray[np.uint8], bits: int, block_size: int, K: int) -> npt.NDArray[np.uint8]: ...
def pack_zero_points(zero_points: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]: ...
def all_finite(array: npt.NDArray[np.floating]) -> bool: ...

class PackedWeight:
    @property
    def nbytes(self) -> int: ...

def pack(
    packed: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.generic],
    zero_points: npt.NDArray[np.generic] | None,
    *,
    bits: int,
    block_size: int,
    K: int,
) -> PackedWeight: ...
def matmul_nbits(
    A: npt.NDArray[np.float32],
    packed: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.generic],
    zero_points: npt.NDArray[np.generic] | None,
    bias: npt.NDArray[np.float32] | None,
    *,
    bits: int,
    block_size: int,
    K: int,
    accuracy_level: int = 0,
    activation: str | None = None,
    gate: npt.NDArray[np.float32] | None = None,
    addend: npt.NDArray[np.float32] | None = None,
    norm_scale: npt.NDArray[np.float32] | None = None,
    norm_epsilon: float = 0.0,
    glu: int = 0,
    isa: str | None = None,
) -> tuple[npt.NDArray[np.float32], str]: ...
def matmul_int8(
    A: npt.NDArray[np.float32] | npt.NDArray[np.int8] | npt.NDArray[np.uint8],
    weight: npt.NDArray[np.int8] | npt.NDArray[np.uint8],
    zero_points: npt.NDArray[np.int8] | npt.NDArray[np.uint8] | None,
    scales: npt.NDArray[np.float32] | None,
    bias: npt.NDArray[np.float32] | None,
    *,
    a_format: tuple[float, int, bool],
    y_format: tuple[float, int, bool] | None = None,
    transposed: bool = False,
    isa: str | None = None,
) -> tuple[npt.NDArray[np.generic], str]: ...

class PackedBlockSparse:
    @property
    def nbytes(self) -> int: ...

def pack_block_sparse(
    values: npt.NDArray[np.generic],
    indices: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int32],
    scales: npt.NDArray[np.float32] | None,
    *,
    K: int,
    N: int,
) -> PackedBlockSparse: ...
def block_sparse_matmul(
    A: npt.NDArray[np.float32] | npt.NDArray[np.uint8],
    weight: PackedBlockSparse,
    bias: npt.NDArray[np.float32] | None = None,
    *,
    activation: str = "",
    a_format: tuple[float, int] | None = None,
    y_format: tuple[float, int] | None = None,
    isa: str | None = None,
) -> tuple[npt.NDArray[np.generic], str]: ...
def matmul_minifloat(
    A: npt.NDArray[np.float32],
    packed: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.generic],
    bias: npt.NDArray[np.float32] | None,
    *,
    format: str,
    block_size: int,
    K: int,
    accuracy_level: int = 0,
    isa: str | None = None,
) -> tuple[npt.NDArray[np.float32], str]: ...
def rounding_errors(
    x: npt.NDArray[np.float32],
    scales: npt.NDArray[np.float32],
    growth: npt.NDArray[np.float32],
    format: str,
    isa: str | None = None,
) -> tuple[npt.NDArray[np.float32], str]: ...
def dynamic_format(values: npt.NDArray[np.float32], *, isa: str | None = None) -> tuple[float, int]: ...
def dot_rate(seconds: float, *, isa: str | None = None) -> float: ...
def read(memory: npt.NDArray[np.uint8], *, isa: str | None = None) -> None: ...
def all_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def kernels(isa: str) -> dict[str, list[str]]: ...
def chosen_isa() -> str: ...
def cached_attention(
    query: npt.NDArray[np.float32],
    key: npt.NDArray[np.float32],
    value: npt.NDArray[np.float32],
    past_key: npt.NDArray[np.float32],
    past_value: npt.NDArray[np.float32],
    kept: npt.NDArray[np.int64],
    total: npt.NDArray[np.int64],
    *,
    present_size: int,
    scale: float = 1.0,
    softcap: float = 0.0,
    window: int = 0,
    bias: npt.NDArray[np.float32] | None = None,
    sinks: npt.NDArray[np.float32] | None = None,
    rotation: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64] | None] | None = None,
    interleaved: bool = False,
    causal: bool = True,
    norms: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], float] | None = None,
    isa: str | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32], str]: ...
