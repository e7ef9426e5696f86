"""The rewrites of floats that calibrated INT8 and sparse products start from, in order."""

from __future__ import annotations

import onnx_ir as ir

from .passes import (
    ClampBeforeMove,
    FactorGates,
    FoldAffine,
    MatMulToGemm,
    PushTranspose,
    RaiseOpset,
    RecogniseActivations,
    SplitConvTranspose,
    SqueezeWeights,
    SumToAdd,
)
from .passes.expand_hard_activations import ExpandHardActivations
from .passes.expand_lrn import ExpandLrn
from .passes.plain_average_pool import PlainAveragePool
from .passes.resize_all_axes import ResizeAllAxes
from .recipe import Recipe

OPSET = 13
"""From which DequantizeLinear has scales a channel, and functions of our domain are written."""


def prepare(model: ir.Model, recipe: Recipe | None = None, *, gemm: bool = True, opset: int = OPSET) -> None:
    """Rewrite a model that CleanUp went over; its tensors then have the names that statistics know them by.

    Args:
        model: The model, changed in place.
        recipe: Whose patterns keep a ConvTranspose as it is.
        gemm: Write MatMul with a bias as Gemm.
        opset: That the model is to have at least. Where it cannot be raised so far, it is raised to `OPSET`; where not
            even that is possible it stays, and so do the operators whose other forms are newer.
    """
    earlier = (
        SqueezeWeights(), SumToAdd(), PushTranspose(), RecogniseActivations(), FoldAffine(), FactorGates(),
        SplitConvTranspose(recipe), MatMulToGemm() if gemm else None, ClampBeforeMove(),
    )  # fmt: skip
    for step in earlier:
        if step is not None:
            step(model)
    rise = next((rise for rise in map(RaiseOpset, (opset, OPSET)) if rise.obstacle(model) is None), None)
    if rise is not None:
        rise(model)
        for later in (ExpandHardActivations(), ExpandLrn(), PlainAveragePool(), ResizeAllAxes()):
            later(model)
