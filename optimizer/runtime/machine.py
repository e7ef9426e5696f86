"""What of this machine decides how a model is rounded, and for which machines it then is.

ONNX Runtime's kernels for x86 with AVX2 or AVX-512 but without VNNI multiply uint8 by int8 with an instruction that
adds two products up in int16 first. 255 * 127 * 2 is beyond that, so the sum saturates; 255 * 63 * 2 is not.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .session import open_session, session_options

if TYPE_CHECKING:
    from ..settings.recipe import Recipe

EXACT = "session.x64quantprecision"
"""Entry of a session's configuration: "1" makes ONNX Runtime's sums exact on any CPU, and slower; not without its
graph optimizations."""

_ANY = "any"
_FULL = "CPUs with VNNI or dot products of bytes"
_ELSEWHERE = (
    f'on others stock ONNX Runtime saturates (--target any: weights of 7 bits; or its session entry {EXACT}="1"), and '
    "our execution provider does not"
)


@functools.cache
def products_saturate() -> bool:
    """Whether ONNX Runtime adds products of uint8 and int8 up in int16 here, which codes of 8 bits overflow: measured.

    Raises:
        OnnxpressError: ONNX Runtime has no MatMulInteger.
    """
    K, N = 64, 32
    a = ir.Value(name="a", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(["m", K]))
    weight = ir.tensor(np.full((K, N), 127, np.int8), name="weight")
    w = ir.Value(name="weight", const_value=weight)
    product = ir.node("MatMulInteger", [a, w])
    y = product.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.INT32), ir.Shape(["m", N])
    graph = ir.Graph([a], [y], nodes=[product], initializers=[w], opset_imports={"": 13}, name="saturation")
    model = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    session = open_session(model, session_options(threads=1))
    return any((session.run(None, {"a": np.full((m, K), 255, np.uint8)})[0] != 255 * 127 * K).any() for m in (1, 8))


def reduces_range(recipe: Recipe) -> bool:
    """Whether weights that meet rounded activations get codes of 7 bits: as asked for, or as the target needs them."""
    if recipe.reduce_range is not None:
        return recipe.reduce_range
    return recipe.target == _ANY or products_saturate()


def saturation_note() -> list[str]:
    """What to say beside times of products of uint8 and int8, whose weights have 7 bits."""
    note = (
        "weights have 7 bits: with 8, ONNX Runtime's products of uint8 and int8 saturate on this CPU, and ours do not"
    )
    return [note] if products_saturate() else []


def made_for(reduced: bool) -> str:
    """The CPUs on which stock ONNX Runtime computes what the weights say, for a report."""
    return "any CPU, by weights of 7 bits" if reduced else f"{_FULL}; {_ELSEWHERE}"


def warn_of_saturation(reduced: bool) -> list[str]:
    """The warning about weights of 8 bits on a machine whose products saturate."""
    if reduced or not products_saturate():
        return []
    return [
        "stock ONNX Runtime's products of uint8 and int8 saturate on this CPU with weights of 8 bits: leave out "
        f'--full-range, give a session the entry {EXACT}="1", or run the model on our execution provider'
    ]
