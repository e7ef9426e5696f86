"""The attention of a decoder: queries against the keys and values of the past and their own.

    key, value  = Concat(past, new)                                [batch, key heads, keys, width]
    y           = softmax(cap tanh(f q key' / cap) + mask) value,  head by head, key heads shared by groups of heads

    (Vaswani et al., 2017, arXiv:1706.03762; groups: Ainslie et al., 2023, arXiv:2305.13245)

Only the products, the softmax and the Concat are looked for; what is between them is told by tries (see `trial`), so
that it does not matter how an exporter writes it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .constants import scalar
from .matching import is_standard
from .projection import reader
from .rewriting import required
from .rotary import Heads, factor_of, read_heads, sources_of
from .score_mask import Case, ScoreMask, read_mask
from .scores import concat_ahead, product_ahead, read_scores
from .trial import Array, Trial, UnknownError, numbered, places

Sizes = tuple[int, int, int]
"""Batch, queries and past."""
_FIRST: Sizes = (2, 3, 4)
_OTHERS: tuple[Sizes, ...] = ((3, 1, 5), (1, 4, 0), (2, 5, 0), (2, 2, 7))
_MOVES = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_FAR = 50


@dataclasses.dataclass(frozen=True)
class CachedAttention:
    """An attention with a past, from its heads to the node whose output it takes over.

    Attributes:
        query: Of the heads.
        key: Of the key heads, without the past.
        value: Likewise.
        past: Keys and values of the past, [batch, key heads, past, width].
        present: The same with the new ones.
        factor: That scores are multiplied by.
        cap: Of the scores; 0 where there is none.
        mask: What is added to them.
        read: The queries as the product reads them.
        last: The node that makes [batch, sequence, heads * width].
    """

    query: Heads
    key: Heads
    value: Heads
    past: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]
    factor: float
    cap: float
    mask: ScoreMask
    read: ir.Value
    last: ir.Node


def has_past(softmax: ir.Node) -> bool:
    """Whether a softmax is about keys of which some are an input of the model."""
    return product_ahead(softmax) is not None


def find_cached_attention(softmax: ir.Node, trials: Trials) -> CachedAttention:
    """The attention around the softmax of a main graph, of float32; raises UnknownError, whose text is the reason."""
    product = product_behind(softmax)
    scores = read_scores(required(softmax.inputs[0]))
    dots, is_flat = scores.product, scores.split is not None
    key_concat, value_concat = concat_ahead(dots.inputs[1]), concat_ahead(product.inputs[1])
    if key_concat is None or value_concat is None:
        raise UnknownError("keys or values have no past that is an input of the model")
    trials.learn(key_concat, dots.inputs[0])
    trial = trials.case(_FIRST).trial
    query = read_heads(required(dots.inputs[0]), trial, is_flat=is_flat)
    key, value = (read_heads(required(each.inputs[1]), trial) for each in (key_concat, value_concat))
    _check_heads(query, key, value)
    case = trials.case(_FIRST)
    present = key_concat.outputs[0], value_concat.outputs[0]
    tries = _Tries(trial, [case.batch, key.count, case.keys, key.width], query.count, case.queries)
    turned = tries.kept(required(dots.inputs[1]), present[0], is_flat=is_flat, turned=True)
    if scores.split is not None:
        tries.check_split(scores.split, dots.outputs[0])
    is_merged = product.inputs[0] is not softmax.outputs[0] and tries.is_merged(required(product.inputs[0]), softmax)
    if tries.kept(required(product.inputs[1]), present[1], is_flat=is_merged, turned=False) != 1:
        raise UnknownError("a factor behind the values")
    if not scores.terms:
        raise UnknownError("no mask: queries see keys behind them")
    mask = read_mask(scores.terms, trials.cases(), query.count)
    sizes = [case.batch, query.count, case.queries, query.width]
    last = merge_behind(product.outputs[0], sizes, trial, is_flat=is_merged)
    past = required(key_concat.inputs[0]), required(value_concat.inputs[0])
    for kept in present:
        _check_private(kept)
    factor, read = scores.factor * query.factor * turned, required(dots.inputs[0])
    return CachedAttention(query, key, value, past, present, factor, scores.cap, mask, read, last)


class Trials:
    """Tries of a model whose sizes of batch, sequence and past are told by one of its attentions."""

    def __init__(self, model: ir.Model, opset: int) -> None:
        self._inputs, self._opset = list(model.graph.inputs), opset
        self._known: dict[tuple[object, ...], dict[tuple[Sizes, int | None], Case]] = {}
        self._current: dict[tuple[Sizes, int | None], Case] = {}
        self._names: tuple[str | int, str | int, str | int] = (0, 0, 0)

    def learn(self, concat: ir.Node, query: ir.Value | None) -> None:
        """Take the sizes by what the past of an attention is called; raises UnknownError."""
        past = required(concat.inputs[0])
        if past.shape is None or len(past.shape) != 4:
            raise UnknownError("the sizes of the past are not known")
        batch, _, length, _ = (dim if isinstance(dim, int) else dim.value or "" for dim in past.shape)
        if not length or isinstance(length, int):
            raise UnknownError("the past has a fixed size")
        names = (batch, self._sequence(batch, length, query), length)
        if names not in self._known:
            self._known[names] = {}
        self._current, self._names = self._known[names], names

    def case(self, sizes: Sizes, fill: int | None = None) -> Case:
        """The trial of these sizes; a batch or a sequence that the model fixes stays as it is.

        Args:
            sizes: Batch, queries and past.
            fill: What integers of each token are; None for positions.
        """
        batch, queries = (
            name if isinstance(name, int) else size for name, size in zip(self._names[:2], sizes[:2], strict=True)
        )
        made = (batch, queries, sizes[2]), fill
        if made not in self._current:
            self._current[made] = Case(self._trial(*made), *made[0])
        return self._current[made]

    def cases(self) -> Sequence[Case]:
        """All of them, those among them in which tokens are all of one type, by which they may see each other."""
        return [*map(self.case, (_FIRST, *_OTHERS)), *(self.case(_FIRST, fill) for fill in (0, 1))]

    def _trial(self, sizes: Sizes, fill: int | None) -> Trial:
        names = {name: size for name, size in zip(self._names, sizes, strict=True) if isinstance(name, str)}
        for name, place in self._places().items():
            if name not in names:
                names[name] = sizes[place] if place is not None else _sum(name, names) or sizes[1] + sizes[2]
        return Trial(self._opset, names, lambda value: _input(value, names, sizes, self._names[1], fill))

    def _places(self) -> dict[str, int | None]:
        """Names of open dimensions, and which of the sizes each is by where it stands: exporters may name each anew."""
        found: dict[str, int | None] = {}
        for value in self._inputs:
            places = {2: (0,), 4: (0, None, 2)}.get(_rank(value) or 0, ())
            for axis, dim in enumerate(value.shape or ()):
                if not isinstance(dim, int) and dim.value:
                    place = places[axis] if axis < len(places) else None
                    found[dim.value] = place if found.get(dim.value) is None else found[dim.value]
        return found

    def _sequence(self, batch: str | int, past: str, query: ir.Value | None) -> str | int:
        """What the size of the sequence is called: that of the tokens of the queries."""
        others = sorted(name for name, place in self._places().items() if place is None and name not in (batch, past))
        plain = [name for name in others if _sum(name, dict.fromkeys(others, 1) | {past: 1}) is None]
        names = {name: 11 + 2 * at for at, name in enumerate(plain)} | {past: 5}
        if isinstance(batch, str):
            names[batch] = 3
        for name in others:
            names.setdefault(name, _sum(name, names) or 9)
        found = _tokens(query, Trial(self._opset, names))
        return next((name for name in plain if names[name] == found), found)


def _tokens(heads: ir.Value | None, trial: Trial) -> int:
    """The second size of the hidden state that heads come from; raises UnknownError."""
    hidden, _ = sources_of(required(heads))
    value: ir.Value | None = hidden[0] if hidden else None
    for _ in range(_FAR):
        if value is not None and _rank(value) == 3:
            return trial.sizes(value)[1]
        node = value.producer() if value is not None else None
        value = node.inputs[0] if node is not None and node.inputs else None
    raise UnknownError("the sizes of the hidden states are not known")


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _sum(name: str, known: Mapping[str, int]) -> int | None:
    """The size of a name such as "past + sequence"."""
    parts = [part.strip() for part in name.split("+")]
    if len(parts) < 2 or any(part not in known and not re.fullmatch(r"\d+", part) for part in parts):
        return None
    return sum(int(part) if part.isdigit() else known[part] for part in parts)


def _input(
    value: ir.Value, names: Mapping[str, int], sizes: Sizes, sequence: str | int, fill: int | None
) -> Array | None:  # fmt: skip
    """A plausible input: every second row of a mask is padded on the left, positions count up."""
    kinds = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.FLOAT)
    if not value.is_graph_input() or value.shape is None or value.dtype not in kinds:
        return None
    shape = [dim if isinstance(dim, int) else names.get(dim.value or "", 0) for dim in value.shape]
    kind, last = value.dtype.numpy(), value.shape[-1] if len(shape) else None
    if value.dtype == ir.DataType.FLOAT or len(shape) != 2:
        return np.zeros(shape, kind)
    if not isinstance(last, int) and last is not None and last.value != sequence:
        padding = np.arange(shape[0])[:, None] % 2
        return np.broadcast_to(np.arange(shape[1]) >= padding, shape).astype(kind)
    return np.broadcast_to(sizes[2] + np.arange(shape[1]) if fill is None else fill, shape).astype(kind)


def product_behind(softmax: ir.Node) -> ir.Node:
    """The product of weights and values, behind the softmax and what makes nothing of NaN."""
    weights = softmax.outputs[0]
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        raise UnknownError("softmax over other axes than [batch, heads, queries, keys]")
    readers = [node for node, _ in weights.uses() if node.op_type != "Shape"]
    if len(readers) == 2 and (tests := [node for node in readers if is_standard(node, "IsNaN")]):
        choice = reader(tests[0].outputs[0])
        if is_standard(choice, "Where") and choice.inputs[2] is weights and scalar(choice.inputs[1]) == 0:
            weights = choice.outputs[0]
    product = reader(weights)
    while is_standard(product, "Identity", "Dropout", "Reshape"):
        weights = product.outputs[0]
        product = reader(weights)
    if not is_standard(product, "MatMul") or product.inputs[0] is not weights:
        raise UnknownError("the softmax is read by more than the product with the values")
    return product


def _check_heads(query: Heads, key: Heads, value: Heads) -> None:
    """Raises UnknownError where no operator takes such heads."""
    if not query.width == key.width == value.width or key.count != value.count or query.count % key.count:
        raise UnknownError("query, key and value differ in width, or heads are shared unevenly")
    if key.factor != 1 or value.factor != 1:
        raise UnknownError("a factor ahead of what is kept for later")
    if value.rotation is not None:
        raise UnknownError("values are rotated")


class _Tries:
    """What becomes of weights, keys and values on the way to the products.

    Args:
        trial: For these sizes.
        sizes: Of keys or values that are kept, [batch, key heads, keys, width].
        heads: Of the queries, among which those that are kept are shared.
        queries: How many.
    """

    def __init__(self, trial: Trial, sizes: list[int], heads: int, queries: int) -> None:
        self._trial, self._sizes, self._heads = trial, sizes, heads
        self._scores = [sizes[0], heads, queries, sizes[2]]

    def kept(self, value: ir.Value, present: ir.Value, *, is_flat: bool, turned: bool) -> float:
        """The factor of keys or values as a product reads them; raises UnknownError where they are not those kept.

        Args:
            value: What the product reads.
            present: What is kept, past and new ones.
            is_flat: Whether the product reads [batch * heads, keys, width].
            turned: Whether it reads [batch, heads, width, keys].
        """
        sizes = self._sizes
        factor = factor_of(value, present, sizes, self._trial, {})
        found = places(self._trial.array(value, {present: numbered(sizes)}) / np.float32(factor))
        if is_flat and found.ndim == 3 and found.shape[0] == sizes[0] * self._heads:
            found = found.reshape(sizes[0], self._heads, *found.shape[1:])
        kept = np.arange(int(np.prod(sizes))).reshape(sizes)
        shared = (
            kept if found.ndim == 4 and found.shape[1] == sizes[1] == 1 else kept.repeat(self._heads // sizes[1], 1)
        )
        if not np.array_equal(found, shared.transpose(0, 1, 3, 2) if turned else shared):
            raise UnknownError("a product reads other keys or values than those that are kept for later")
        return factor

    def check_split(self, scores: ir.Value, product: ir.Value) -> None:
        """Raises UnknownError where scores are not those of a product, split into batch and heads."""
        flat = numbered(_flat(self._scores))
        if list(self._trial.array(scores, {product: flat}).shape) != self._scores:
            raise UnknownError("scores are split into other axes than batch and heads")

    def is_merged(self, weights: ir.Value, softmax: ir.Node) -> bool:
        """Whether the product with the values reads weights [batch * heads, queries, keys]; raises UnknownError."""
        shape = list(self._trial.array(weights, {softmax.outputs[0]: numbered(self._scores)}).shape)
        if shape not in (self._scores, _flat(self._scores)):
            raise UnknownError("weights are merged into other axes than batch and heads")
        return shape != self._scores


def merge_behind(context: ir.Value, sizes: list[int], trial: Trial, *, is_flat: bool = False) -> ir.Node:
    """The node that makes [batch, sequence, heads * width] of a product with the values; raises UnknownError.

    Args:
        context: The product.
        sizes: Of it, [batch, heads, sequence, width].
        trial: For these sizes.
        is_flat: Whether it is [batch * heads, sequence, width].
    """
    wanted, given = numbered(sizes).transpose(0, 2, 1, 3), numbered(_flat(sizes) if is_flat else sizes)
    node = reader(context)
    for _ in range(4):
        if not is_standard(node, *_MOVES) or (axes := _rank(node.outputs[0])) is None:
            break
        if axes == 3:
            merged = trial.array(node.outputs[0], {context: given})
            if np.array_equal(merged, wanted.reshape(*wanted.shape[:2], -1)):
                return node
            break
        node = reader(node.outputs[0])
    raise UnknownError("heads are not merged by Transpose and Reshape")


def _flat(sizes: list[int]) -> list[int]:
    return [sizes[0] * sizes[1], *sizes[2:]]


def _check_private(present: ir.Value) -> None:
    """Raises UnknownError where others than the attention read what is kept, but for its sizes."""
    if len([node for node, _ in present.uses() if node.op_type != "Shape"]) > 1:
        raise UnknownError("others read the keys or values that are kept for later")
