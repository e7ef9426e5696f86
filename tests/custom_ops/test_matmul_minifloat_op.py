"""MatMulMiniFloat inside ONNX Runtime: types, shapes, threads, and errors that name the node and the value."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from minifloats import FORMATS, SCALE_TYPES, Case
from onnxpress.custom_ops import reference, register
from pairs import all_pairs
from sessions import options


def session(model, ours=True, **settings):
    chosen = options(**settings)
    if ours:
        register(chosen)
    return ort.InferenceSession(model, chosen)


@all_pairs({"format": FORMATS, "scale": SCALE_TYPES, "activation": [np.float32, np.float16], "block_size": [0, 32]})
def test_types(format, scale, activation, block_size):
    case = Case(format, scale=scale, activation=activation, block_size=block_size, bias=block_size == 32)
    A = case.feed(2, 3)
    (got,) = session(case.model(function=False)).run(None, {"A": A})
    assert case.close(got, A)


@pytest.mark.parametrize("format", FORMATS)
def test_every_code_through_the_session(format):
    """Exact: one product of each code and its scale."""
    values = reference.MINIFLOATS[format]
    codes = np.flatnonzero(np.isfinite(values)).astype(np.uint8)
    case = Case(format, K=1, N=len(codes), block_size=0)
    case.arrays["B"] = reference.pack_codes(codes[:, None, None], reference.minifloat_bits(format))
    (got,) = session(case.model(function=False)).run(None, {"A": np.ones((1, 1, 1), np.float32)})
    np.testing.assert_array_equal(got[0, 0], values[codes] * case.arrays["scales"][:, 0])


def test_our_kernel_runs_where_the_library_is_registered():
    """Its sums differ from those of the function's body, at least by rounding, and are those of the kernel."""
    case = Case(K=1000, N=64, block_size=0, accuracy_level=3)
    A = case.feed(1, 9)
    (stock,) = session(case.model(), ours=False).run(None, {"A": A})
    (got,) = session(case.model()).run(None, {"A": A})
    assert case.close(stock, A)
    assert not np.array_equal(stock, got)
    np.testing.assert_allclose(got, case.reference(A, 0), atol=2e-2 * np.abs(stock).max())


def test_weight_that_is_an_input():
    """Not a constant: packed on every call, so another weight gives another answer, and checked then too."""
    first, second = Case(bias=True), Case(bias=True, seed=5)
    A = first.feed(1, 2)
    opened = session(first.model(function=False, constant=()))
    for case in (first, second):
        assert case.close(opened.run(None, {"A": A, **case.arrays})[0], A)
    spoiled = first.arrays["B"].copy()
    spoiled[3, 1, 7] = 0x7F
    with pytest.raises(Exception, match=r"the_node.*input B holds codes that are infinity or NaN"):
        opened.run(None, {"A": A, **first.arrays, "B": spoiled})


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("level", [0, 3])
def test_threads_do_not_change_the_answer(threads, level):
    case = Case("e2m1", K=1056, N=2000, accuracy_level=level)
    opened = session(case.model(function=False), intra_op_num_threads=threads)
    for rows in (1, 7, 130):
        A = reference.round_to_bfloat16(case.feed(1, rows))
        np.testing.assert_allclose(opened.run(None, {"A": A})[0], case.reference(A), atol=1e-3)


def test_ranks_and_empty_rows():
    for lead in ((), (4,), (1, 2, 3), (0,), (2, 0)):
        case = Case("e3m2")
        A = case.feed(*lead)
        (got,) = session(case.model(function=False, lead=lead)).run(None, {"A": A})
        assert case.close(got, A)


@pytest.mark.skipif(ort.__version__.startswith("1.23."), reason="ONNX Runtime 1.23 crashes in preparing it")
def test_shape_inference_in_cpp():
    proto = onnx.load_from_string(Case().model(function=False, lead=("batch", 5)))
    proto.graph.output[0].ClearField("type")
    assert session(proto.SerializeToString()).get_outputs()[0].shape == ["batch", 5, 37]


def scaled(value, scale=np.float32):
    scales = np.ones((37, 4), scale)
    scales[20, 2] = value
    return scales


def with_code(format, code):
    case = Case(format)
    packed = case.arrays["B"].copy()
    packed[11, 2, 5] = code
    return packed


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (Case(), {"format": "e4m3"}, "format is 'e4m3', must be e4m3fn, e5m2, e3m4, e3m2, e2m3, e2m1 or nf4"),
        (Case(), {"format": None}, "format is '', must be"),
        (Case(), {"format": "e2m1"}, "input B has shape [37, 4, 32], but K=100, N=37, format=e2m1, block_size=32 need"),
        (Case(), {"block_size": 24}, "block_size is 24"),
        (Case(), {"block_size": -32}, "block_size is -32"),
        (Case(), {"block_size": 2**62}, "block_size is 4611686018427387904"),
        (Case(), {"block_size": None}, "need [37, 1, 100]"),
        (Case(), {"K": 0}, "K is 0"),
        (Case(), {"K": 2**62}, "K is 4611686018427387904"),
        (Case(), {"N": -5}, "N is -5"),
        (Case(), {"N": 38}, "need [38, 4, 32]"),
        (Case(), {"accuracy_level": 4}, "accuracy_level is 4, but floating-point codes have no products in int8"),
        (Case(), {"accuracy_level": 9}, "accuracy_level is 9"),
        (Case(), {"scales": np.ones((37, 3), np.float32)}, "input scales has shape [37, 3]"),
        (Case(), {"scales": scaled(0)}, "input scales holds values that are not positive numbers"),
        (Case(), {"scales": scaled(-1)}, "input scales holds values that are not positive numbers"),
        (Case(), {"scales": scaled(np.inf)}, "input scales holds values that are not positive numbers"),
        (Case(), {"scales": scaled(np.nan)}, "input scales holds values that are not positive numbers"),
        (Case(), {"scales": scaled(np.inf, np.float16)}, "input scales holds values that are not positive numbers"),
        (Case(scale=np.uint8), {"scales": scaled(255, np.uint8)}, "input scales holds values that are not positive"),
        (Case("e4m3fn"), {"B": with_code("e4m3fn", 0x7F)}, "input B holds codes that are infinity or NaN in e4m3fn"),
        (Case("e4m3fn"), {"B": with_code("e4m3fn", 0xFF)}, "input B holds codes that are infinity or NaN in e4m3fn"),
        (Case("e5m2"), {"B": with_code("e5m2", 0xFC)}, "input B holds codes that are infinity or NaN in e5m2"),
        (Case("e3m4"), {"B": with_code("e3m4", 0x70)}, "input B holds codes that are infinity or NaN in e3m4"),
    ],
)
def test_wrong_models_are_refused_when_the_session_is_made(case, changes, message):
    proto = onnx.load_from_string(case.model(function=False, **changes))
    proto.graph.output[0].ClearField("type")
    with pytest.raises(Exception, match="the_node") as error:
        session(proto.SerializeToString())
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["K", "N"])
def test_missing_attributes(name):
    with pytest.raises(Exception, match=f"attribute {name} is missing|does not exist|{name}"):
        session(Case().model(function=False, **{name: None}))


def test_wrong_shapes_at_run_time():
    proto = onnx.load_from_string(Case().model(function=False))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "k"
    opened = session(proto.SerializeToString())
    with pytest.raises(Exception, match="the_node") as error:
        opened.run(None, {"A": np.zeros((1, 2, 99), np.float32)})
    assert "input A has shape [1, 2, 99], its last size must be K=100" in str(error.value)
