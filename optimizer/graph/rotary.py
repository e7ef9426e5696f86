"""Heads as an attention reads them: columns of a tensor, split into heads, perhaps rotated by angles of positions.

    y[b, h, s, d] = factor * x[b, s, column(h, d)],     rotated pairwise (Su et al., 2021, arXiv:2104.09864, eq. 34):
    y1, y2        = x1 cos - x2 sin,  x2 cos + x1 sin    of the pairs (d, d + r / 2) or (2 d, 2 d + 1) of the first r

The nodes between x and y only move, scale, add and multiply by the angles' sines and cosines, so that what they do is
told by two tries: of numbers that name their places, with a cosine of one, and of random ones.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .constants import constant_of
from .matching import is_standard
from .trial import Array, Trial, UnknownError, is_of_sizes, numbered, places

_MOVES = ("Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_MIXES = ("Add", "Concat", "Div", "Mul", "Neg", "Sub")
_CLOSE = 1e-4
_TOKENS = 3  # axes of [batch, sequence, columns]
_DEEPEST = 60


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Rotary position embedding.

    Attributes:
        cos: Cosines of the angles, whose last axis is `width` numbers.
        sin: Sines likewise.
        width: Numbers of a head that are rotated.
        interleaved: Whether pairs are neighbours.
        doubled: Whether the tables have each angle twice, where its pair has its numbers.
        shared: Whether one row of angles a token serves all of a batch.
    """

    cos: ir.Value
    sin: ir.Value
    width: int
    interleaved: bool
    doubled: bool
    shared: bool


@dataclasses.dataclass(frozen=True)
class Heads:
    """What heads are of.

    Attributes:
        source: [batch, sequence, columns], [batch, sequence, heads, width] or [batch, heads, sequence, width].
        columns: Which of the columns each number of each head is, [heads, width]; for a source of four axes of all
            of its heads, each as often as the others.
        heads_first: Whether the heads are the source's second axis.
        factor: What they are multiplied by.
        rotation: How they are rotated; None where they are not.
    """

    source: ir.Value
    columns: npt.NDArray[np.int64]
    heads_first: bool
    factor: float
    rotation: Rotation | None

    @property
    def count(self) -> int:
        """How many heads."""
        return int(self.columns.shape[0])

    @property
    def width(self) -> int:
        """Of a head."""
        return int(self.columns.shape[1])

    def once(self) -> Heads:
        """Each head once, where groups share them."""
        return dataclasses.replace(self, columns=_once(self.columns))


def _once(columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each head once, of heads that groups share, each as often as the first."""
    if not len(columns):
        return columns
    group = next((at for at, head in enumerate(columns) if (head != columns[0]).any()), len(columns))
    once = columns[::group]
    return once if np.array_equal(once.repeat(group, 0), columns) else columns


def read_heads(value: ir.Value, trial: Trial, *, is_flat: bool = False, turned: bool = False) -> Heads:
    """What heads are of.

    Args:
        value: [batch, heads, sequence, width].
        trial: For some sizes.
        is_flat: Whether it is [batch * heads, sequence, width].
        turned: Whether the last two axes are exchanged.

    Raises:
        UnknownError: It cannot be told, or no operator makes heads like these.
    """
    hidden, angles = sources_of(value)
    if len(hidden) != 1 or len(angles) not in (0, 2):
        raise UnknownError("heads are not of one tensor, rotated by one table of cosines and one of sines")
    source = hidden[0]
    if not angles:
        return _read_straight(value, source, trial, {}, is_flat=is_flat, turned=turned)
    for cos, sin in (angles, angles[::-1]):
        still = {cos: np.ones_like(trial.array(cos)), sin: np.zeros_like(trial.array(sin))}
        try:
            heads = _read_straight(value, source, trial, still, is_flat=is_flat, turned=turned)
        except UnknownError:
            continue
        return dataclasses.replace(heads, rotation=_rotation(value, heads, cos, sin, trial, turned))
    raise UnknownError("heads are rotated in no way that is known")


def sources_of(value: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
    """The hidden states that heads come from, and what they are rotated by; raises UnknownError."""
    hidden: dict[ir.Value, None] = {}
    angles: dict[ir.Value, None] = {}
    _sort(value, hidden, angles, 0)
    return list(hidden), list(angles)


def _sort(value: ir.Value, hidden: dict[ir.Value, None], angles: dict[ir.Value, None], depth: int) -> None:
    """Where the numbers of a value come from: hidden states, and angles."""
    if is_angle(value):
        angles[value] = None
        return
    if is_of_sizes(value):
        return
    node = value.producer()
    if depth > _DEEPEST:
        raise UnknownError("heads come from too far away")
    if is_standard(node, "Reshape") and _axes(node.inputs[0]) == _TOKENS and not _is_turned(node.inputs[0]):
        source = node.inputs[0]
        assert source is not None
        while is_standard(cut := source.producer(), "Split", "Slice", "Identity") and _axes(cut.inputs[0]) == _TOKENS:
            source = cut.inputs[0]
            assert source is not None
        hidden[source] = None
    elif is_standard(node, *_MOVES, "Gather") and node.inputs[0] is not None and constant_of(node.inputs[0]) is None:
        _sort(node.inputs[0], hidden, angles, depth + 1)
    elif is_standard(node, *_MIXES) and not _is_biased(node):
        for each in node.inputs:
            if each is not None:
                _sort(each, hidden, angles, depth + 1)
    else:
        hidden[value] = None


def _is_turned(value: ir.Value | None) -> bool:
    """Whether a value is heads as matrices whose first axis is batch and heads, which torch's newer exporter turns."""
    return value is not None and is_standard(value.producer(), "Transpose")


def _is_biased(node: ir.Node) -> bool:
    """Whether it adds a constant to tokens, which is then part of the hidden states."""
    constants = [value for value in node.inputs if constant_of(value) is not None]
    return is_standard(node, "Add") and _axes(node.outputs[0]) == _TOKENS and bool(constants)


def _axes(value: ir.Value | None) -> int | None:
    return len(value.shape) if value is not None and value.shape is not None else None


def is_angle(value: ir.Value, depth: int = 0) -> bool:
    """Whether a value is made of cosines, sines or rows of a table alone, and constants."""
    node = value.producer()
    if is_standard(node, "Cos", "Sin"):
        return True
    if is_standard(node, "Gather"):
        table = constant_of(node.inputs[0])
        return table is not None and table.dtype == ir.DataType.FLOAT and len(table.shape) == 2
    if is_standard(node, "GatherElements"):  # of a table that is repeated for each row of the batch
        return is_of_sizes(node.inputs[0])
    if depth > _DEEPEST or not is_standard(node, *_MOVES, *_MIXES, "GatherND"):
        return False
    read = node.inputs if node.op_type in _MIXES else node.inputs[:1]
    varying = [each for each in read if each is not None and constant_of(each) is None]
    return bool(varying) and all(is_angle(each, depth + 1) for each in varying)


def factor_of(value: ir.Value, source: ir.Value, sizes: list[int], trial: Trial, more: dict[ir.Value, Array]) -> float:
    """The number that all of a value is where its source is one; raises UnknownError."""
    flat = trial.array(value, {source: np.ones(sizes, np.float32), **more})
    factor = float(flat.reshape(-1)[0]) if flat.size else 0.0
    if factor == 0 or not np.isfinite(factor) or np.abs(flat / factor - 1).max() > _CLOSE:
        raise UnknownError("numbers are changed on the way to the heads")
    return factor


def _read_straight(
    value: ir.Value, source: ir.Value, trial: Trial, more: dict[ir.Value, Array], *, is_flat: bool, turned: bool
) -> Heads:  # fmt: skip
    """Heads without their rotation, `more` being what makes it none; raises UnknownError."""
    sizes = trial.sizes(source)
    factor = factor_of(value, source, sizes, trial, more)
    found = places(trial.array(value, {source: numbered(sizes), **more}) / np.float32(factor))
    if is_flat and found.ndim == 3 and found.shape[0] % sizes[0] == 0:
        found = found.reshape(sizes[0], -1, *found.shape[1:])
    elif is_flat or found.ndim != 4:
        raise UnknownError("heads are no [batch, heads, sequence, width]")
    found = found.swapaxes(2, 3) if turned else found
    batch, heads, tokens, width = found.shape
    if len(sizes) == 4 and sizes == [batch, sizes[1], tokens, width] and sizes[1] and heads % sizes[1] == 0:
        group = heads // sizes[1]
        if np.array_equal(found, np.arange(found.size // group).reshape(sizes).repeat(group, 1)):
            return Heads(source, np.arange(sizes[1] * width).reshape(-1, width).repeat(group, 0), True, factor, None)
    if sizes[:2] != [batch, tokens]:
        raise UnknownError("heads are not of tokens [batch, sequence]")
    every = int(np.prod(sizes[2:]))
    columns = found[0, :, 0]
    rows = np.arange(batch * tokens).reshape(batch, 1, tokens, 1) * every
    if (columns < 0).any() or (columns >= every).any() or (found != rows + columns[None, :, None]).any():
        raise UnknownError("tokens are mixed on the way to the heads")
    if len(sizes) == 4 and not np.array_equal(_once(columns).reshape(-1), np.arange(every)):
        raise UnknownError("heads are taken apart on the way")
    return Heads(source, columns, False, factor, None)


def _rotation(
    value: ir.Value, heads: Heads, cos: ir.Value, sin: ir.Value, trial: Trial, turned: bool
) -> Rotation:  # fmt: skip
    generator = np.random.default_rng(0)
    x = generator.standard_normal(trial.sizes(heads.source)).astype(np.float32)
    selected = _selected(x, heads)
    batch, _, tokens, width = selected.shape
    shape = trial.array(cos).shape
    rows = int(np.prod(shape[:-1]))
    if shape != trial.array(sin).shape or rows not in (tokens, batch * tokens):
        raise UnknownError("sines and cosines are no row a token")
    shared = rows == tokens and batch > 1
    for interleaved, doubled in ((False, True), (True, True), (False, False), (True, False)):
        rotated = shape[-1] if doubled else 2 * shape[-1]
        if rotated > width or rotated % 2:
            continue
        c, s = generator.standard_normal((2, rows, rotated // 2)).astype(np.float32)
        fed = {heads.source: x, cos: _spread(c, interleaved, doubled).reshape(shape),
               sin: _spread(s, interleaved, doubled).reshape(shape)}  # fmt: skip
        try:
            made = trial.array(value, fed)
            made = made.swapaxes(2, 3) if turned else made
        except UnknownError:
            continue
        c, s = (each.reshape(-1, 1, tokens, rotated // 2) for each in (c, s))
        wanted = heads.factor * rotate(selected, c, s, interleaved)
        if np.allclose(made.reshape(wanted.shape), wanted, rtol=_CLOSE, atol=_CLOSE):
            _check_doubled(cos, sin, interleaved, doubled, trial)
            return Rotation(cos, sin, rotated, interleaved, doubled, shared)
    raise UnknownError("heads are rotated in no way that is known")


def _selected(x: Array, heads: Heads) -> Array:
    if heads.heads_first:
        return x[:, heads.columns[:, 0] // heads.width]
    flat = x.reshape(*x.shape[:2], -1)
    taken: Array = flat[:, :, heads.columns].transpose(0, 2, 1, 3)
    return taken


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Heads [.., width] rotated by angles whose cosines and sines are [.., rotated / 2]."""
    half, rotated = cos.shape[-1], 2 * cos.shape[-1]
    first, second = (x[..., 0:rotated:2], x[..., 1:rotated:2]) if interleaved else (x[..., :half], x[..., half:rotated])
    turned = first * cos - second * sin, second * cos + first * sin
    both = np.stack(turned, -1).reshape(*x.shape[:-1], rotated) if interleaved else np.concatenate(turned, -1)
    return np.concatenate([both, x[..., rotated:]], -1)


def _spread(table: Array, interleaved: bool, doubled: bool) -> Array:
    if not doubled:
        return table
    return np.repeat(table, 2, -1) if interleaved else np.concatenate([table, table], -1)


def _check_doubled(cos: ir.Value, sin: ir.Value, interleaved: bool, doubled: bool, trial: Trial) -> None:
    """Whether the tables hold each angle twice indeed; raises UnknownError."""
    for each in (cos, sin) if doubled else ():
        table = trial.array(each)
        half = table.shape[-1] // 2
        once = table[..., ::2] if interleaved else table[..., :half]
        if (table != _spread(once, interleaved, doubled)).any():
            raise UnknownError("the numbers of a pair are rotated by different angles")
