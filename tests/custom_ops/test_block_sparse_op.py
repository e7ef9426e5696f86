"""BlockSparseMatMul inside ONNX Runtime: all forms, shapes, threads, and errors that name the node and the value."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxpress.custom_ops import register
from sessions import options
from sparse import FORMS, Case


def session(model, **settings):
    chosen = options(**settings)
    register(chosen)
    return ort.InferenceSession(model, chosen)


def check(case, got, want):
    assert got.shape == want.shape
    assert got.dtype == (np.uint8 if case.quantized_output else np.float32)
    if case.integer and case.activation in ("", "relu"):
        np.testing.assert_array_equal(got, want.astype(got.dtype))
    elif case.quantized_output:  # next to a tie
        assert np.abs(got.astype(int) - want.astype(int)).max(initial=0) <= 1
    else:
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * case.K * max(1, np.abs(want).max(initial=0)))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("function", [True, False])
def test_all_forms(form, function):
    for block in [(4, 4), (4, 1), (1, 16)]:
        case = Case(70, 37, *block, **form)
        opened = session(case.model(function=function))
        for lead in [(2, 3), (5, 8), (0, 3)]:
            A = case.feed(*lead)
            check(case, opened.run(None, {"A": A})[0], case.reference(A))


def test_our_kernel_runs_where_the_library_is_registered():
    """An infinity meets only the weights that are stored: no zeros, with which it would make NaN."""
    case = Case(64, 64, integer=False, density=0.1)
    model, A = case.model(), case.feed(1, 20)
    A[0, 3, 32:36] = np.inf
    (stock,) = ort.InferenceSession(model, options()).run(None, {"A": A})
    (ours,) = session(model).run(None, {"A": A})
    assert np.isnan(stock[0, 3]).all()
    assert np.isfinite(ours[0, 3]).any()


def test_many_threads_and_many_pieces():
    for block in [(4, 4), (1, 4)]:
        case = Case(512, 700, *block)
        opened = session(case.model(), intra_op_num_threads=3)
        feeds = [case.feed(1, M, seed=M) for M in (1, 9, 65, 200)]
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(opened.run, [None] * len(feeds), [{"A": A} for A in feeds]))
        for A, got in zip(feeds, results, strict=True):
            check(case, got[0], case.reference(A))


@pytest.mark.parametrize("lead", [("batch", "sequence"), (3, 5), ("batch",)])
@pytest.mark.skipif(ort.__version__.startswith("1.23."), reason="ONNX Runtime 1.23 gets no shape inference")
def test_shape_and_type_inference(lead):
    for form in FORMS:
        case = Case(**form)
        proto = onnx.load_from_string(case.model(function=False, lead=lead))
        proto.graph.output[0].ClearField("type")
        (y,) = session(proto.SerializeToString()).get_outputs()
        assert y.shape == [*lead, case.N]
        assert y.type == ("tensor(uint8)" if case.quantized_output else "tensor(float)")


def test_scalar_and_wrong_rows():
    case = Case()
    opened = session(case.model(function=False, lead=()))
    A = case.feed()
    check(case, opened.run(None, {"A": A})[0], case.reference(A))
    proto = onnx.load_from_string(case.model(function=False))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "k"
    with pytest.raises(Exception, match=r"the_node.*its last size must be K=37"):
        session(proto.SerializeToString()).run(None, {"A": np.zeros((1, 2, 36), np.float32)})


def damaged(name, change):
    """An array of a static case with all inputs, changed."""
    case = Case(static=True, bias=True, quantized_output=True)
    return case.model(function=False, **{name: change(case.arrays[name].copy())})


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


ERRORS = [
    ("indices", put(0, 10), "indices have 10 at 0, must be 0 to 9"),
    ("indices", put(0, -1), "indices have -1 at 0"),
    ("indices", put(1, 0), "indices do not rise at 1"),
    ("indices", lambda a: a[:-1], r"indices has shape \[\d+\], must be"),
    ("indices", lambda a: a.astype(np.int64), "."),
    ("offsets", put(0, 1), "offsets begin with 1"),
    ("offsets", put(3, 0), "offsets fall after block row 2"),
    ("offsets", put(-1, 1 << 30), "offsets end with 1073741824"),
    ("offsets", lambda a: a[:-1], "offsets has shape"),
    ("values", lambda a: a[:, :, :3], "values has shape"),
    ("values", lambda a: a[:-1], "indices has shape"),
    ("values", lambda a: a.reshape(-1), "values has shape"),
    ("values", lambda a: np.ones_like(a), "values of block .* beyond K or N are not zero"),
    ("values", lambda a: a.astype(np.float32), "scales is of int8 values"),
    ("scales", lambda a: a[:-1], "scales has shape"),
    ("scales", lambda a: None, "scales is missing, or no constant"),
    ("bias", lambda a: a[:-1], "bias has shape"),
    ("a_scale", lambda a: None, "only one of a_scale and a_zero_point"),
    ("a_scale", lambda a: np.float32([1, 2]), "a_scale has shape"),
    ("a_scale", lambda a: np.float32(0), "a_scale is 0.0+, must be a positive number"),
    ("y_scale", lambda a: np.float32(np.nan), "y_scale is -?nan, must be a positive number"),
    ("y_scale", lambda a: np.float32(-1), "y_scale is -1.0+, must be a positive number"),
    ("y_zero_point", lambda a: None, "."),
]


@pytest.mark.parametrize(("name", "change", "message"), ERRORS)
def test_wrong_inputs(name, change, message):
    with pytest.raises(Exception, match=message) as raised:
        session(damaged(name, change))
    assert message == "." or "onnxpress::BlockSparseMatMul node 'the_node'" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"K": 0}, "K is 0"),
        ({"K": -4}, "K is -4"),
        ({"K": 1 << 40}, "K is"),
        ({"N": 0}, "N is 0"),
        ({"N": 1 << 60}, "N is"),
        ({"block_k": 0}, "block_k is 0"),
        ({"block_n": 65}, "block_n is 65"),
        ({"block_n": 2}, "values has shape"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"K": None}, "attribute K is missing"),
        ({"block_n": None}, "attribute block_n is missing"),
    ],
)
def test_wrong_attributes(change, message):
    with pytest.raises(Exception, match=message):
        session(Case().model(function=False, **change))


def test_inputs_must_be_constants():
    proto = onnx.load_from_string(Case().model(function=False))
    (scales,) = (each for each in proto.graph.initializer if each.name == "scales")
    proto.graph.initializer.remove(scales)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("scales", onnx.TensorProto.FLOAT, [29]))
    with pytest.raises(Exception, match="the_node': input scales is missing, or no constant"):
        session(proto.SerializeToString())
