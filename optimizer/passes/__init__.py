"""Graph rewrites, one a file. Each says what it changed and gives a reason for what it left alone."""

from .clean_up import CleanUp
from .plan import Decision, plan
from .quantize_gather import QuantizeGather
from .quantize_matmul import QuantizeMatMul
from .raise_opset import RaiseOpset

__all__ = ["CleanUp", "Decision", "QuantizeGather", "QuantizeMatMul", "RaiseOpset", "plan"]
