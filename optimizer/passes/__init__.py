"""Graph rewrites, one a file. Each says what it changed and gives a reason for what it left alone."""

from .clamp_before_move import ClampBeforeMove
from .clean_up import CleanUp
from .factor_gates import FactorGates
from .fold_affine import FoldAffine
from .matmul_to_gemm import MatMulToGemm
from .name_nodes import NameNodes
from .plan import Decision, plan
from .push_transpose import PushTranspose
from .quantize_conv import QuantizeConv
from .quantize_gather import QuantizeGather
from .quantize_matmul import QuantizeMatMul
from .raise_opset import RaiseOpset
from .recognise_activations import RecogniseActivations
from .split_conv_transpose import SplitConvTranspose
from .squeeze_weights import SqueezeWeights
from .sum_to_add import SumToAdd

__all__ = [
    "ClampBeforeMove",
    "CleanUp",
    "Decision",
    "FactorGates",
    "FoldAffine",
    "MatMulToGemm",
    "NameNodes",
    "PushTranspose",
    "QuantizeConv",
    "QuantizeGather",
    "QuantizeMatMul",
    "RaiseOpset",
    "RecogniseActivations",
    "SplitConvTranspose",
    "SqueezeWeights",
    "SumToAdd",
    "plan",
]
