"""The ways in which each weight of a model could be rounded."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import onnx_ir as ir

from ...model_io.names import copy_of
from ...model_io.storage import weights_size
from ...planning.lazy_weight import LazyWeight
from ...quantization.schemes import SCHEMES, WeightScheme
from ...settings.recipe import Recipe
from .compensation import add_unread, rank_of
from .rewrite import decide, rewrite

_WIDTHS = (
    ("int2", "int3", "int4", "int5", "int6", "int8"),
    ("fp4", "fp6", "fp8"),
    ("nf4", "fp6", "fp8"),
    ("mxfp4", "mxfp6", "mxfp8"),
    ("bfp4", "bfp6", "bfp8"),
)
_BLOCKS = (32, 128)
"""Of integers, where the recipe leaves it open."""


class Grid(NamedTuple):
    """What a candidate says of a weight's numbers, as in a recipe; None is its default."""

    scheme: str
    block_size: int | None
    symmetric: bool | None
    rank: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to round a weight.

    Attributes:
        grid: Settings that make it.
        weight: The weight as it is then, with what is added to it among its bytes.
        lost: What its product loses of its squares, as `InputMoments.cost` has it.
    """

    grid: Grid
    weight: LazyWeight
    lost: float = math.inf

    @property
    def scheme(self) -> WeightScheme:
        """Of the weight, with the rank of what is added to it: 0 where nothing can be."""
        return dataclasses.replace(self.weight.scheme, rank=rank_of(self.weight))


def candidates_of(model: ir.Model, recipe: Recipe) -> tuple[dict[tuple[object, ...], list[Candidate]], int]:
    """Candidates of each weight, that of the recipe first, and the bytes of all weights of the model as it is then."""
    found: dict[tuple[object, ...], list[Candidate]] = {}
    whole = 0
    for grid in _grids(recipe):
        copy = copy_of(model)
        asked = recipe.decided(**grid._asdict())
        rewritten = rewrite(copy, decide(copy, asked))
        add_unread(copy, rewritten, recipe.form)
        each = [Candidate(grid, weight) for weight in rewritten.weights]
        if not found:
            whole = weights_size(copy)
            found = {key_of(way.weight): [way] for way in each}
            continue
        for candidate in each:
            ways = found.get(key_of(candidate.weight))
            if ways is not None and all(way.scheme != candidate.scheme for way in ways):
                ways.append(candidate)
    return found, whole


def _grids(recipe: Recipe) -> list[Grid]:
    """Those that a weight may have, that of the recipe first.

    Integers of few bits may go without zero points even where more would have them: that is cheaper, and it is exact
    where weights were decoded from a file of 5 bits about zero, such as Q5_0.
    """
    own = Grid(recipe.scheme, recipe.block_size, recipe.symmetric, recipe.rank)
    widths = next((each for each in _WIDTHS if recipe.scheme in each), (recipe.scheme, "fp6", "fp8"))
    ranks = dict.fromkeys((recipe.rank, recipe.rank // 2, recipe.rank // 4, 0))
    found = [own]
    for scheme in widths:
        preset = SCHEMES[scheme]
        has_blocks = preset.integer and recipe.block_size is None
        has_zeros = recipe.symmetric is None and not preset.symmetric
        blocks: tuple[int | None, ...] = _BLOCKS if has_blocks else (recipe.block_size,)
        zeros: tuple[bool | None, ...] = (None, True) if has_zeros else (recipe.symmetric,)
        found += [Grid(scheme, block, symmetric, rank) for block in blocks for symmetric in zeros for rank in ranks]
    return list(dict.fromkeys(found))


def key_of(weight: LazyWeight) -> tuple[object, ...]:
    """What a weight is, however it is rounded."""
    return weight.name, weight.factor, weight.weight.transposed, weight.convolution, weight.nodes
