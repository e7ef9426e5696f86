"""The ways in which each weight of a model could be rounded."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from ...model_io.names import copy_of
from ...model_io.storage import weights_size
from ...planning.lazy_weight import LazyWeight
from ...quantization.schemes import SCHEMES
from ...settings.recipe import Recipe
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


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to round a weight.

    Attributes:
        scheme: Its name.
        block_size: Where the recipe leaves that open.
        weight: The weight as it is then.
        lost: What its product loses of its squares, as `InputMoments.cost` has it.
    """

    scheme: str
    block_size: int | None
    weight: LazyWeight
    lost: float = math.inf


def candidates_of(model: ir.Model, recipe: Recipe) -> tuple[dict[tuple[object, ...], list[Candidate]], int]:
    """Candidates of each weight, that of the recipe first, and the bytes of all weights of the model as it is then."""
    found: dict[tuple[object, ...], list[Candidate]] = {}
    whole = 0
    for scheme, block_size in _settings(recipe):
        copy = copy_of(model)
        asked = recipe.decided(scheme=scheme, block_size=block_size)
        weights = rewrite(copy, decide(copy, asked)).weights
        if not found:
            whole = weights_size(copy)
            found = {key_of(weight): [Candidate(scheme, block_size, weight)] for weight in weights}
            continue
        for weight in weights:
            ways = found.get(key_of(weight))
            if ways is not None and all(way.weight.scheme != weight.scheme for way in ways):
                ways.append(Candidate(scheme, block_size, weight))
    return found, whole


def _settings(recipe: Recipe) -> list[tuple[str, int | None]]:
    """Schemes and block sizes that a weight may have, those of the recipe first."""
    own = recipe.scheme, recipe.block_size
    widths = next((each for each in _WIDTHS if recipe.scheme in each), (recipe.scheme, "fp6", "fp8"))
    found = [own]
    for scheme in widths:
        preset = SCHEMES[scheme]
        blocks = _BLOCKS if preset.integer and recipe.block_size is None and not preset.fixed else (recipe.block_size,)
        found += [(scheme, block) for block in blocks]
    return list(dict.fromkeys(found))


def key_of(weight: LazyWeight) -> tuple[object, ...]:
    """What a weight is, however it is rounded."""
    return weight.name, weight.factor, weight.weight.transposed, weight.convolution, weight.nodes
