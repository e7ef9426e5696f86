"""Graph rewrites, one a file. Each says what it changed and gives a reason for what it left alone."""

from .clean_up import CleanUp
from .fold_affine import FoldAffine
from .plan import Decision, plan
from .quantize_gather import QuantizeGather
from .quantize_matmul import QuantizeMatMul
from .raise_opset import RaiseOpset
from .recognise_activations import RecogniseActivations

__all__ = [
    "CleanUp",
    "Decision",
    "FoldAffine",
    "QuantizeGather",
    "QuantizeMatMul",
    "RaiseOpset",
    "RecogniseActivations",
    "plan",
]
