"""Layers that stay in float because this machine runs them faster so, and the proof that the whole is faster.

A layer is judged with the conversions that hang on it. Where one goes back to float, its neighbours get other
conversions, and may be slower for it: so what became of the model is judged anew, a few times, and of all forms that
came up the one is taken whose whole is fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import onnx_ir as ir

from ...errors import OnnxpressError
from ...runtime.feeds import Feeds
from ...runtime.profile import slower_in_int8
from ...runtime.timing import seconds_of_models

_ROUNDS = 3


class ModelMaker(Protocol):
    """Makes INT8 models of one float model: static's `Builder`."""

    model: ir.Model
    feeds: list[Feeds]

    def unrestored(self, kept: Mapping[str, str]) -> tuple[ir.Model, list[str]]:
        """The model with nodes of these names in float, without corrections, and its products on codes."""


def slower_layers(maker: ModelMaker, kept: Mapping[str, str]) -> dict[str, str]:
    """The products to keep in float so that the model is fastest, and why.

    Args:
        maker: Of the models.
        kept: What stays in float anyway, by name, and why.

    Raises:
        OnnxpressError: ONNX Runtime cannot load or run a model.
    """
    found: dict[str, str] = {}
    ways, models = [found], [maker.unrestored(kept)]
    for _ in range(_ROUNDS):
        model, products = models[-1]
        slower = slower_in_int8(maker.model, model, products, maker.feeds[0]) if products else {}
        if not slower:
            break
        found = found | {
            name: f"slower in int8: {1e6 * int8:.0f} us against {1e6 * float32:.0f}"
            for name, (float32, int8) in slower.items()
        }
        ways.append(found)
        models.append(maker.unrestored({**kept, **found}))
    if len(ways) == 1:
        return found
    seconds = seconds_of_models([model for model, _ in models], maker.feeds[0])
    return ways[seconds.index(min(seconds))]


def prove_faster(maker: ModelMaker, kept: Mapping[str, str]) -> tuple[float, float] | None:
    """Seconds of the float model and of the INT8 one; None where nothing is left in INT8.

    Raises:
        OnnxpressError: The INT8 model is not the faster one, or ONNX Runtime cannot load one.
    """
    model, products = maker.unrestored(kept)
    if not products:
        return None
    float32, int8 = seconds_of_models([maker.model, model], maker.feeds[0])
    if int8 >= float32:
        raise OnnxpressError(
            f"not faster in int8 on this machine, nothing written: {1e3 * int8:.2f} ms with {len(products)} products "
            f"in int8, {1e3 * float32:.2f} ms in float32"
        )
    return float32, int8
