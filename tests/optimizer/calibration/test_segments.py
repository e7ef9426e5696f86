"""Both paths through a model against the whole model run at once, wherever it is cut."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress.optimizer.calibration.segments import Segments
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.graph.constants import mark_constants
from onnxpress.optimizer.model_io.reading import from_proto

RNG = np.random.default_rng(3)
WEIGHTS = {name: RNG.standard_normal((8, 8)).astype(np.float32) for name in ("A", "B", "C", "D")}
NODES = ("first", "second", "third", "fourth")
TEXT = """<ir_version: 9, opset_import: ["" : 18]>
g (float[n, 8] x, float[n, 8] other) => (float[n, 8] y)
   <float two = {2.0}> {
    three = Add(two, two)
    [first] a = MatMul(x, A)
    kept = Mul(other, three)
    [second] b = MatMul(a, B)
    size = Shape(b)
    some = Cast<to = 9>(two)
    c = If(some) <then_branch = t () => (float[n, 8] d) { d = Add(b, x) },
                  else_branch = e () => (float[n, 8] f) { f = Identity(b) }>
    [third] h = MatMul(c, C)
    s = Add(h, kept)
    shaped = Reshape(s, size)
    [fourth] y = MatMul(shaped, D)
}"""


def model(text=TEXT):
    proto = onnx.parser.parse_model(text)
    for name, array in WEIGHTS.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    made = from_proto(proto, "model")
    mark_constants(made)
    return made


def batches(count=3):
    rng = np.random.default_rng(1)
    return [{name: rng.standard_normal((4 + i, 8)).astype(np.float32) for name in ("x", "other")} for i in range(count)]


def inputs(feeds, weights):
    """What each product reads."""
    a = feeds["x"] @ weights["A"]
    c = a @ weights["B"] + feeds["x"]
    return {"second": a, "third": c, "fourth": c @ weights["C"] + 4 * feeds["other"]}


READ = {"first": "x", "second": "a", "third": "c", "fourth": "shaped"}


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("cuts", [NODES, ("second", "fourth"), ("fourth",)])
def test_both_paths_are_those_of_the_whole_model(cuts, memory):
    changed = {**WEIGHTS, "A": WEIGHTS["A"] + 1, "C": WEIGHTS["C"] - 1}
    with Segments(model(), iter(batches()), memory=memory) as segments:
        assert segments.batches == 3
        segments.change("first", changed["A"])
        segments.change("third", changed["C"])
        for cut in cuts:
            segments.advance(cut)
            for batch, feeds in enumerate(batches()):
                here, rounded = segments.pair(READ[cut], batch)
                if cut == "first":
                    assert here is rounded or memory == 0
                    continue
                np.testing.assert_allclose(here, inputs(feeds, WEIGHTS)[cut], rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(rounded, inputs(feeds, changed)[cut], rtol=1e-4, atol=1e-4)


def test_what_no_change_reaches_is_the_same_on_both_paths():
    with Segments(model(), batches()) as segments:
        segments.advance("second")
        assert segments.pair("a", 0)[0] is segments.pair("a", 0)[1]
        segments.change("second", WEIGHTS["B"] * 2)
        segments.advance("third")
        here, rounded = segments.pair("c", 0)
        assert not np.allclose(here, rounded)
        assert segments.pair("kept", 0)[0] is segments.pair("kept", 0)[1]


def test_what_nobody_reads_any_more_is_forgotten_and_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Segments(model(), batches(), memory=0) as segments:
        segments.advance("fourth")
        with pytest.raises(KeyError):
            segments.pair("a", 0)
        assert list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.iterdir())


def test_a_sequence_cannot_be_kept():
    text = TEXT.replace("kept = Mul(other, three)", "list = SequenceConstruct(other, other)")
    text = text.replace("s = Add(h, kept)", "kept = SequenceAt(list, zero) s = Add(h, kept)")
    text = text.replace("two = {2.0}", "two = {2.0}, int64 zero = {0}")
    with Segments(model(text), batches()) as segments, pytest.raises(OnnxpressError, match="'list' is no tensor"):
        segments.advance("second")


def test_an_input_that_is_not_given_has_its_default():
    made = model()
    default = np.full((4, 8), 2, np.float32)
    made.graph.inputs[1].const_value = ir.tensor(default, name="other")
    made.graph.initializers.add(made.graph.inputs[1])
    given = {"x": batches()[0]["x"]}
    with Segments(made, [given]) as segments:
        segments.advance("fourth")
        want = inputs({**given, "other": default}, WEIGHTS)["fourth"]
        np.testing.assert_allclose(segments.pair("shaped", 0)[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 64])  # within the model, and beside it
def test_a_default_is_what_an_input_holds_that_nobody_feeds(size):
    default = RNG.standard_normal((8, size)).astype(np.float32)
    proto = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 18]>
g (float[n, 8] x, float[8, {size}] given) => (float[n, 8] y) {{
    [first] a = MatMul(x, given)
    [second] y = MatMul(a, W)
}}""")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(default, "given"))
    weight = RNG.standard_normal((size, 8)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    made = from_proto(proto, "model")
    mark_constants(made)
    fed = {"x": RNG.standard_normal((4, 8)).astype(np.float32)}
    other = {**fed, "given": 2 * default}
    with Segments(made, [fed, other]) as segments:
        segments.advance("second")
        for batch, weight in enumerate((default, 2 * default)):
            np.testing.assert_allclose(segments.pair("a", batch)[0], fed["x"] @ weight, rtol=1e-5, atol=1e-5)


def test_outputs_and_weights_that_are_computed_when_they_are_read():
    """An array of a lazy tensor is held by nobody, and outputs are kept to the end where they are asked for."""
    reads = []
    wide = {"C": np.tile(WEIGHTS["C"], (1, 64)), "D": np.tile(WEIGHTS["D"], (64, 1))}  # to lie beside the model

    def evaluate():
        reads.append("C")
        return ir.tensor(wide["C"])

    text = TEXT.replace("s = Add(h, kept)", "s = Tanh(h)").replace("shaped = Reshape(s, size)", "shaped = Identity(s)")
    made = model(text)
    tensors = {
        "C": ir.LazyTensor(evaluate, ir.DataType.FLOAT, ir.Shape(wide["C"].shape), name="C"),
        "D": ir.tensor(wide["D"], name="D"),
    }
    for name, tensor in tensors.items():
        value = made.graph.initializers[name]
        value.const_value, value.shape = tensor, ir.Shape(wide[name].shape)
    (feeds,) = batches(1)
    with Segments(made, [feeds], outputs=True) as segments:
        segments.advance("third")
        assert not reads
        segments.advance_over("third")
        assert reads == ["C"]
        product = inputs(feeds, WEIGHTS)["third"] @ wide["C"]
        np.testing.assert_allclose(segments.pair("h", 0)[0], product, rtol=1e-4, atol=1e-4)
        assert segments.finish() == ["y"]
        np.testing.assert_allclose(segments.pair("y", 0)[0], np.tanh(product) @ wide["D"], rtol=1e-4, atol=1e-3)
