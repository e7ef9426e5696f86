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

_OPSET = 13  # DequantizeLinear has scales a channel


def prepare(model: ir.Model, recipe: Recipe | None = None, *, gemm: bool = True, opset: int = _OPSET) -> Left:
    """Rewrite a model that CleanUp went over; its tensors then have the names that statistics know them by.

    Args:
        model: The model, changed in place.
        recipe: Whose patterns keep a ConvTranspose as it is.
        gemm: Write MatMul with a bias as Gemm.
        opset: That the model has to have at least.

    Returns:
        What was left.

    Raises:
        OnnxpressError: The opset is too old and cannot be raised.
    """
    return run_all(model, (
        SqueezeWeights(), SumToAdd(), PushTranspose(), RecogniseActivations(), FoldAffine(), FactorGates(),
        SplitConvTranspose(recipe), *([MatMulToGemm()] if gemm else []), ClampBeforeMove(), RaiseOpset(opset),
        ExpandHardActivations(), ExpandLrn(), PlainAveragePool(), ResizeAllAxes(),
    ))  # fmt: skip
