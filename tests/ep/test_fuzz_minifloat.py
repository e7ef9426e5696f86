"""Random and corrupted MatMulMiniFloat nodes: the reference's numbers, or an error, and never a crash."""

from __future__ import annotations

import numpy as np
from fuzzing import HUGE, SETTINGS, spoiled
from hypothesis import given
from hypothesis import strategies as st
from minifloats import ATTRIBUTES, FORMATS, SCALE_TYPES, Case


@st.composite
def cases(draw):
    K = draw(st.sampled_from([1, 2, 15, 16, 17, 31, 33, 64, 100]))
    return Case(
        format=draw(st.sampled_from(FORMATS)), K=K, N=draw(st.sampled_from([1, 2, 15, 16, 17, 33])),
        block_size=draw(st.sampled_from([0, 16, 32, 48])), scale=draw(st.sampled_from(SCALE_TYPES)),
        activation=draw(st.sampled_from([np.float32, np.float16])), bias=draw(st.booleans()),
        accuracy_level=draw(st.sampled_from([0, 1])), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


@SETTINGS
@given(cases(), st.sampled_from([0, 1, 5, 8, 20]), st.booleans())
def test_valid_nodes(child, case, M, provider):
    A = case.feed(1, M)
    got = child.run(case.model(), {"A": A}, provider=provider, ops=not provider)
    assert not isinstance(got, str), got
    assert case.close(got[0], A)


@st.composite
def corrupted(draw, case):
    """Attributes and arrays to replace."""
    changed = {}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*case.arrays, *ATTRIBUTES]))
        if name == "format":
            changed[name] = draw(st.sampled_from([None, "", "e4m3", *FORMATS]))
        elif name in ATTRIBUTES:
            changed[name] = draw(st.sampled_from([None, 0, -1, 3, 4, 16, 32, 65, HUGE]))
        else:
            array = np.asarray(changed[name] if changed.get(name) is not None else case.arrays[name])
            if draw(st.booleans()):
                changed[name] = draw(st.one_of(st.none(), spoiled(array))) if array.size else None
            elif array.size:
                array = array.copy()
                with np.errstate(over="ignore"):
                    code = array.view(np.uint8) if array.flags.c_contiguous else array
                    code.reshape(-1)[draw(st.integers(0, code.size - 1))] = draw(st.sampled_from([0, 127, 128, 255]))
                changed[name] = array
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
