"""Ways to round weights where data shows what their inputs hold, by name."""

from .in_order import GPTQ
from .method import Method, Problem
from .nearest import RTN, SEARCH
from .qronos import QRONOS

__all__ = ["METHODS", "Method", "Problem"]

METHODS = {method.name: method for method in (RTN, SEARCH, GPTQ, QRONOS)}
