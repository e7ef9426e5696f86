"""Random and corrupted BlockSparseMatMul nodes: the reference's numbers, or an error, and never a crash."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from fuzzing import HUGE, SETTINGS, spoiled
from hypothesis import given
from hypothesis import strategies as st
from sparse import Case

SIZES = st.sampled_from([1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 40])


@st.composite
def cases(draw):
    integer = draw(st.booleans())
    static = integer and draw(st.booleans())
    return Case(
        K=draw(SIZES), N=draw(SIZES), block_k=draw(SIZES), block_n=draw(SIZES),
        density=draw(st.sampled_from([0, 0.3, 1])), integer=integer, static=static,
        uint8=static and draw(st.booleans()), bias=draw(st.booleans()),
        activation=draw(st.sampled_from(["", "relu", "gelu", "gelu_tanh"])), quantized_output=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def matches(case, got, want):
    if case.quantized_output:
        return got.shape == want.shape and np.abs(got.astype(int) - want.astype(int)).max(initial=0) <= 1
    return got.shape == want.shape and np.allclose(got, want, rtol=1e-4, atol=1e-4)


@SETTINGS
@given(cases(), st.sampled_from([0, 1, 5, 8, 20]), st.booleans())
def test_valid_nodes(child, case, M, provider):
    A = case.feed(1, M)
    got = child.run(case.model(), {"A": A}, provider=provider, ops=not provider)
    assert not isinstance(got, str), got
    assert matches(case, got[0], case.reference(A))


@st.composite
def corrupted(draw, case):
    """Attributes and arrays to replace."""
    changed = {}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*case.arrays, "indices", "offsets", "K", "N", "block_k", "block_n", "activation"]))
        if name not in case.arrays:
            wild = (
                st.sampled_from([None, "silu"]) if name == "activation" else st.sampled_from([0, -1, 3, 65, HUGE, None])
            )
            changed[name] = draw(wild)
            continue
        array = np.asarray(changed.get(name, case.arrays[name]))
        if array.ndim == 0 or draw(st.integers(0, 3)) == 0:
            changed[name] = draw(st.sampled_from([None, array[None], array.astype(np.int64)]))
        elif draw(st.booleans()) or not array.size:
            changed[name] = draw(spoiled(array))
        else:
            array = array.copy()
            limits = [0, 1, -1, 2, 127] if array.dtype == np.int8 else [0, 1, -1, 2, 1000, 2**31 - 1, -(2**31)]
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(limits))
            changed[name] = array
        if changed[name] is None:
            break
    return changed


@SETTINGS
@given(st.data(), cases(), st.booleans(), st.booleans())
def test_corrupted_nodes(child, data, case, provider, function):
    changed = data.draw(corrupted(case))
    model = case.model(function=function, **changed)
    for M in (1, 20):
        got = child.run(model, {"A": case.feed(1, M)}, provider=provider, ops=True)
        if isinstance(got, str):
            continue
        assert got[0].shape[:2] == (1, M)


@pytest.mark.parametrize("provider", [False, True])
def test_values_that_are_computed(child, provider):
    """By a node before: no constants."""
    case = Case()
    proto = onnx.load_from_string(case.model(function=False))
    for name in ("values", "indices", "offsets", "scales"):
        changed = onnx.ModelProto.FromString(proto.SerializeToString())
        (tensor,) = (each for each in changed.graph.initializer if each.name == name)
        changed.graph.initializer.remove(tensor)
        shape, kind = list(tensor.dims), tensor.data_type
        changed.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        feeds = {"A": case.feed(1, 2), name: case.arrays[name]}
        got = child.run(changed.SerializeToString(), feeds, provider=provider)
        assert isinstance(got, str)
        assert "no constant" in got
