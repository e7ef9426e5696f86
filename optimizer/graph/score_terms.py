"""What an attention adds to its scores, term by term.

    softmax(f q k' + t1 + t2 + ...),     scores [batch, heads, queries, keys]

A term is a mask of padding (see `padding_mask`), or anything else that broadcasts to the scores: a causal triangle, a
window, a bias by the distance of positions, or sums of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir

from .constants import constant_of, scalar
from .matching import exact_rank, is_standard
from .padding_mask import LARGE, PaddingMask, added_mask, chosen_mask
from .projection import is_private, without_factors
from .rewriting import required
from .score_mask import Case, Term, stripped
from .trial import UnknownError

_AXES = 4
_DEEPEST = 8
_STACKED = 5  # axes of the scores of windows [images, windows, heads, queries, keys]


@dataclasses.dataclass(frozen=True)
class Bias:
    """What is added to scores.

    Attributes:
        mask: It, as the graph has it.
        padding: The same as a mask of padding, None where it is none.
        repeats: Whether it is [1, windows, heads or 1, queries, keys], of which a batch takes one after the other.
        spares_nan: Whether a softmax of what it leaves nothing of must not become NaN.
    """

    mask: Term
    padding: PaddingMask | None = None
    repeats: bool = False
    spares_nan: bool = False


def read_terms(scores: ir.Value) -> tuple[ir.Value, list[Bias]] | str:
    """Scores without what is added to them, and that, the last one first; or why it cannot be told.

    Args:
        scores: What a softmax reads.
    """
    terms: list[Bias] = []
    while (node := scores.producer()) is not None:
        if is_standard(node, "Add"):
            found = _added(node)
        elif is_standard(node, "Where"):
            found = _chosen(node)
        elif is_standard(node, "Reshape"):
            found = _of_windows(node)
        else:
            break
        if found is None or not is_private(scores):
            return "what is done to the scores is no sum with a mask or a bias"
        scores, term = found
        terms.append(term)
    return scores, terms


def _added(node: ir.Node) -> tuple[ir.Value, Bias] | None:
    inputs = [required(value) for value in node.inputs[:2]]
    ways = [index for index in (0, 1) if _leads_to_product(inputs[index])]
    if len(ways) != 1:
        return None
    term = inputs[1 - ways[0]]
    return inputs[ways[0]], Bias(Term(term), added_mask(term))


def _chosen(node: ir.Node) -> tuple[ir.Value, Bias] | None:
    condition = required(node.inputs[0])
    for index in (1, 2):
        fill = scalar(node.inputs[3 - index])
        if fill is not None and fill <= -LARGE:
            mask = Term(condition, is_choice=True, fill=fill, counts=index == 1)
            return required(node.inputs[index]), Bias(mask, chosen_mask(condition, fill, index == 1))
    return None


def _of_windows(last: ir.Node) -> tuple[ir.Value, Bias] | None:
    """A sum within two Reshapes that take the batch apart into images and windows, and put it together again."""
    node = required(last.inputs[0]).producer()
    if not is_standard(node, "Add") or not is_private(node.outputs[0]):
        return None
    for index in (0, 1):
        apart, term = required(node.inputs[index]), required(node.inputs[1 - index])
        split = apart.producer()
        if not is_standard(split, "Reshape") or not is_private(apart):
            continue
        scores = required(split.inputs[0])
        windows = _same_tail(scores, apart, _STACKED)
        if windows is not None and _same_tail(scores, last.outputs[0], _AXES) is not None:
            sizes = list(term.shape or ())
            heads, *table = list(scores.shape or ())[1:]
            if len(sizes) == _STACKED and sizes[:2] == [1, windows] and sizes[2] in (1, heads) and sizes[3:] == table:
                return scores, Bias(Term(term), repeats=True)
    return None


def _same_tail(scores: ir.Value, reshaped: ir.Value, axes: int) -> int | None:
    """The size ahead of heads, queries and keys, where these are numbers and stay so; 0 where it is none."""
    before, after = list(scores.shape or ()), list(reshaped.shape or ())
    same = len(before) == _AXES and len(after) == axes and before[1:] == after[-3:]
    if not same or not all(isinstance(size, int) for size in before[1:]):
        return None
    return size if isinstance(size := after[-_AXES], int) else 0


def _leads_to_product(value: ir.Value, depth: int = 0) -> bool:
    """Whether a value is a product of two activations but for factors and terms."""
    node = without_factors(value)[1].producer()
    if is_standard(node, "MatMul"):
        return not any(constant_of(each) is not None for each in node.inputs)
    if depth == _DEEPEST or not is_standard(node, "Add", "Where", "Reshape"):
        return False
    read = node.inputs[:1] if node.op_type == "Reshape" else node.inputs
    return any(each is not None and _leads_to_product(each, depth + 1) for each in read)


class Terms:
    """Terms as attention_bias of ONNX Runtime reads them, [batch or 1, heads or 1, queries, keys].

    Args:
        cases: Tries of the model; none where its sizes are not known.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases

    def told(self, term: Bias, x: ir.Value) -> Bias | None:
        """A term without what each layer does to it by itself; None where its batch is not known to be that of x."""
        if term.repeats:
            return term
        mask = stripped(term.mask, self._cases)
        while is_standard(node := mask.root.producer(), "Expand", "Identity") and exact_rank(node.inputs[0]) == _AXES:
            mask = dataclasses.replace(mask, root=required(node.inputs[0]))
        return dataclasses.replace(term, mask=mask) if self._fits(mask.root, x) else None

    def is_whole(self, term: Bias, x: ir.Value) -> bool:
        """Whether a term has a row a query and a column a key of its own."""
        shape, length = term.mask.root.shape, _size(x, 1)
        if term.repeats or (shape is not None and len(shape) == _AXES and all(_same(n, length) for n in shape[2:])):
            return True
        return self._all_are(
            term.mask.root, lambda sizes, case: len(sizes) == _AXES and sizes[2:] == (case.queries, case.keys)
        )

    def _fits(self, root: ir.Value, x: ir.Value) -> bool:
        rank, shape = exact_rank(root), root.shape
        if rank is not None and rank < _AXES:
            return True
        if shape is not None and len(shape) == _AXES and (shape[0] == 1 or _same(shape[0], _size(x, 0))):
            return True
        return self._all_are(root, lambda sizes, case: len(sizes) <= _AXES and sizes[:-3] in ((), (1,), (case.batch,)))

    def _all_are(self, root: ir.Value, right: Callable[[tuple[int, ...], Case], bool]) -> bool:
        """Whether the sizes of a term are right in all tries."""
        try:
            return bool(self._cases) and all(right(case.trial.array(root).shape, case) for case in self._cases)
        except UnknownError:
            return False


def _size(x: ir.Value, axis: int) -> int | ir.SymbolicDim | None:
    return x.shape[axis] if x.shape is not None and len(x.shape) > axis else None


def _same(a: int | ir.SymbolicDim | None, b: int | ir.SymbolicDim | None) -> bool:
    known = isinstance(a, int) or (isinstance(a, ir.SymbolicDim) and a.value is not None)
    return known and a == b
