"""ONNX's own tests of nodes pass with the execution provider where they pass without."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.backend.test.runner import Runner
from onnxpress import ep
from published_nodes import published_nodes
from sessions import options

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the cases, which divide by zero


@pytest.fixture
def cases():
    return published_nodes()


def with_constants(case, inputs: list) -> onnx.ModelProto | None:
    """All inputs but the first as initializers, as weights are."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    declared = list(model.graph.input)
    if len(declared) < 2 or not all(isinstance(value, np.ndarray) for value in inputs[1:]):
        return None
    del model.graph.input[1:]
    for value, array in zip(declared[1:], inputs[1:], strict=False):
        try:
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        except Exception:
            return None  # a type that NumPy lacks
    return model


def passes(model: onnx.ModelProto, inputs: list, expected: list, case, *, provider: bool) -> bool:
    made = options(intra_op_num_threads=1)
    if provider:
        ep.append(made)
    try:
        session = ort.InferenceSession(model.SerializeToString(), made)
        outputs = session.run(
            None, {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=False)}
        )
        Runner.assert_similar_outputs(expected, outputs, rtol=case.rtol, atol=case.atol)
    except Exception:
        return False
    return True


LOOKED_AT = {
    "MatMul", "Gemm", "MatMulInteger", "Gather", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
    "QLinearMatMul", "Cast", "Mul", "Add", "Relu", "Gelu", "Sigmoid", "Tanh", "HardSwish", "Erf",
}  # fmt: skip
"""Operators of what the provider takes, which it tells from others by more than the name."""


def is_looked_at(case) -> bool:
    return bool({node.op_type for node in case.model.graph.node} & LOOKED_AT)


def differing(cases, *, constants):
    """How many cases pass, and those that do on one side alone."""
    passed, different = 0, []
    for case in cases:
        for inputs, expected in case.data_sets:
            model = with_constants(case, inputs) if constants else case.model
            if model is None:
                continue
            stock = passes(model, inputs, expected, case, provider=False)
            passed += stock
            if stock != passes(model, inputs, expected, case, provider=True):
                different.append(case.name)
    return passed, different


# With nothing constant our code leaves each node at its first look; tests/ep/test_fuzz*.py show sanitizers such nodes.
@pytest.mark.parametrize("constants", [True, pytest.param(False, marks=pytest.mark.unsanitized)])
def test_nodes_that_are_looked_at_pass_as_without(cases, constants):
    """With all that can be constant, and with nothing constant, of which the provider takes nothing."""
    passed, different = differing(filter(is_looked_at, cases), constants=constants)
    assert passed > (150 if constants else 60)
    assert not different


@pytest.mark.unsanitized  # our code sees that the operator is none of its own, and no more
def test_other_nodes_pass_as_without(cases):
    passed, different = differing([case for case in cases if not is_looked_at(case)], constants=True)
    assert passed > 550
    assert not different
