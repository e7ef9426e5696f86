"""One random model with its inputs, made from a seed alone."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import onnx

from . import control, convolution, elementwise, patterns, products, shapes
from .sketch import Sketch, Unfit

_PLAIN = (elementwise.EMITTERS, shapes.EMITTERS, convolution.EMITTERS, products.EMITTERS, patterns.EMITTERS)
_INNER = (*elementwise.EMITTERS, *shapes.EMITTERS, products.matmul, products.matmul, products.gemm, convolution.conv)
_CONTROL = (control.branches(_INNER), control.branches(_INNER), control.loop(_INNER), control.scan(_INNER))
_SHARES = (0.26, 0.2, 0.18, 0.18, 0.12, 0.06)

Feeds = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what to run it on.

    Attributes:
        seed: What it was made from.
        model: The model.
        feeds: Sets of inputs: the first leaves defaults as they are, another overrides them where there are some.
        samples: Inputs for a calibration.
    """

    seed: int
    model: onnx.ModelProto
    feeds: list[Feeds]
    samples: list[Feeds]

    @property
    def opset(self) -> int:
        return next(entry.version for entry in self.model.opset_import if entry.domain == "")


def make(seed: int) -> Case:
    """The case of this seed: chains of 3 to 8 emitters, each of a family drawn at random."""
    sketch = Sketch(seed)
    wanted, tries = sketch.between(2, 6), 0
    families = (*_PLAIN, _CONTROL)
    while wanted > 0 and tries < 40:
        tries += 1
        family = families[int(sketch.rng.choice(len(families), p=_SHARES))]
        kept = len(sketch.nodes), len(sketch.initializers), len(sketch.values)
        try:
            sketch.one_of(*family)(sketch)
            wanted -= 1
        except Unfit:
            del sketch.nodes[kept[0] :]
            dropped = sketch.initializers[kept[1] :]
            del sketch.initializers[kept[1] :]
            for tensor in dropped:
                sketch.overrides.pop(tensor.name, None)
            made = {v.name for v in sketch.values[kept[2] :]} - sketch.feeds.keys()
            sketch.values = [v for v in sketch.values if v.name not in made]
    if sketch.chance(0.7):
        with contextlib.suppress(Unfit):  # something to round
            sketch.one_of(products.matmul, products.gemm, convolution.conv)(sketch)
    model = sketch.model()
    feeds = [dict(sketch.feeds)]
    if sketch.overrides and sketch.ir_version >= 4:
        feeds.append({**sketch.feeds, **sketch.overrides})
    return Case(seed, model, feeds, sketch.others(3))
