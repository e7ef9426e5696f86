"""BlockSparseMatMul on the execution provider alone: claimed, left, saved and loaded."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from contexts import compiled
from onnxpress.custom_ops import _kernels
from sessions import on_provider, taken
from sparse import FORMS, Case


def same(got, want):
    return got.dtype == want.dtype and np.array_equal(got, want)


def by_kernel(case, A, isa=None):
    arrays = case.arrays
    weight = _kernels.pack_block_sparse(
        arrays["values"], arrays["indices"], arrays["offsets"], arrays.get("scales"), K=case.K, N=case.N
    )
    formats = {
        f"{side}_format": (float(arrays[f"{side}_scale"]), int(arrays[f"{side}_zero_point"]))
        for side in "ay"
        if f"{side}_scale" in arrays
    }
    y, _ = _kernels.block_sparse_matmul(
        A.reshape(-1, case.K), weight, arrays.get("bias"), activation=case.activation, isa=isa, **formats
    )
    return y.reshape(*A.shape[:-1], case.N)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_claims_every_form(form):
    for block in [(4, 4), (1, 16)]:
        case = Case(70, 37, *block, **form)
        opened = on_provider(case.model())
        A = case.feed(2, 3)
        assert same(opened.run(None, {"A": A})[0], by_kernel(case, A))
        assert taken(opened) in (None, ["BlockSparseMatMul"])


@pytest.mark.parametrize("isa", _kernels.supported_isas())
def test_isa(isa):
    case = Case(integer=False, activation="gelu")
    A = case.feed(2, 9)
    assert same(on_provider(case.model(), isa=isa).run(None, {"A": A})[0], by_kernel(case, A, isa))


def test_other_families_leave_it():
    case = Case()
    opened = on_provider(case.model(), claim="matmul_nbits")
    assert taken(opened) in (None, [])
    A = case.feed(2, 3)
    np.testing.assert_allclose(opened.run(None, {"A": A})[0], case.reference(A), rtol=1e-5, atol=1e-6)


def test_a_wrong_node_is_left():
    """To a function body, where there is one that says nothing of it."""
    case = Case()
    opened = on_provider(case.model(activation="tanh"))
    assert taken(opened) in (None, [])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_round_trip_of_a_context(tmp_path, form):
    case = Case(70, 37, **form)
    _, context, _ = compiled(tmp_path, ir.from_proto(onnx.load_from_string(case.model())))
    assert [node.op_type for node in onnx.load(context).graph.node] == ["EPContext"]
    A = case.feed(2, 3)
    for verify in (False, True):
        opened = on_provider(context, verify=verify)
        assert same(opened.run(None, {"A": A})[0], by_kernel(case, A))


def test_bundles_of_outputs_that_there_are_not(tmp_path):
    """Of the last outputs, fewer than 64: one that the others have."""
    K, N = 70, 70
    case = Case(K, N, 4, 1)
    _, context, weights = compiled(tmp_path, ir.from_proto(onnx.load_from_string(case.model())))
    data = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    bundles, lines = -(-N // 4), lambda size: -(-size // 64) * 64
    steps = int(data[64 + 8 * bundles :][:8].view(np.int64)[0])
    at = 64 + lines(8 * (bundles + 1)) + 2 * lines(16 * steps)
    outputs = data[at : at + 4 * bundles].reshape(-1, 4)
    assert sorted(outputs[:16].ravel()) == list(range(64))
    assert sorted(outputs[16:].ravel()) == list(range(8))
    for output in (15, 16, 63, 64, 255):
        outputs[-1, -1] = output
        weights.write_bytes(data.tobytes())
        if output > 15:
            with pytest.raises(Exception, match="indices outside"):
                on_provider(context)
        else:  # in whole tiles
            on_provider(context).run(None, {"A": case.feed(3, 9)})


@pytest.mark.parametrize("block", [(4, 4), (1, 4), (4, 1)], ids=str)
def test_damaged_weights_of_a_context(tmp_path, block):
    """Bytes of the weight are not hashed when it is loaded: it is refused, or computes something."""
    case = Case(70, 70, *block)
    _, context, weights = compiled(tmp_path, ir.from_proto(onnx.load_from_string(case.model())))
    intact = weights.read_bytes()
    A, rng, refused = case.feed(3, 9), np.random.default_rng(0), 0
    for _ in range(150):
        data = np.frombuffer(intact, np.uint8).copy()
        at = int(rng.integers(64, len(data) // 4 * 3))  # before the index
        data[at : at + int(rng.integers(1, 9))] = rng.choice([0, 1, 127, 128, 255])
        weights.write_bytes(data.tobytes())
        try:
            opened = on_provider(context)
        except Exception as error:
            refused += "indices outside" in str(error)
            continue
        opened.run(None, {"A": A})
        opened.run(None, {"A": A[:, :1]})
    assert refused > 10
