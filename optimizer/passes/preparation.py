"""The rewrites of floats that calibrated INT8 and sparse products start from, in order."""

from __future__ import annotations

import onnx_ir as ir

from ..settings.recipe import Recipe
from .base import Left, run_all
from .clamp_before_move import ClampBeforeMove
from .expand_hard_activations import ExpandHardActivations
from .expand_lrn import ExpandLrn
from .factor_gates import FactorGates
from .fold_affine import FoldAffine
from .matmul_to_gemm import MatMulToGemm
from .plain_average_pool import PlainAveragePool
from .push_transpose import PushTranspose
from .raise_opset import RaiseOpset
from .recognise_activations import RecogniseActivations
from .resize_all_axes import ResizeAllAxes
from .split_conv_transpose import SplitConvTranspose
from .squeeze_weights import SqueezeWeights
from .sum_to_add import SumToAdd

OPSET = 13
"""From which DequantizeLinear has scales a channel, and functions of our domain are written."""


def prepare(model: ir.Model, recipe: Recipe | None = None, *, gemm: bool = True, opset: int = OPSET) -> Left:
    """Rewrite a model that CleanUp went over; its tensors then have the names that statistics know them by.

    Args:
        model: The model, changed in place.
        recipe: Whose patterns keep a ConvTranspose as it is.
        gemm: Write MatMul with a bias as Gemm.
        opset: That the model is to have at least. Where it cannot be raised so far, it is raised to `OPSET`; where not
            even that is possible it stays, and so do the operators whose other forms are newer.

    Returns:
        What was left.
    """
    left = run_all(model, (
        SqueezeWeights(), SumToAdd(), PushTranspose(), RecogniseActivations(), FoldAffine(), FactorGates(),
        SplitConvTranspose(recipe), *([MatMulToGemm()] if gemm else []), ClampBeforeMove(),
    ))  # fmt: skip
    rise = next((rise for rise in map(RaiseOpset, (opset, OPSET)) if rise.obstacle(model) is None), None)
    if rise is None:
        return left
    return left | run_all(model, (rise, ExpandHardActivations(), ExpandLrn(), PlainAveragePool(), ResizeAllAxes()))
