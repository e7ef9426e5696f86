"""Weights alone, rounded by what the data shows of their inputs."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Override, Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.runtime.session import open_session, session_options

RNG = np.random.default_rng(11)
MIXED = RNG.standard_normal((12, 12)).astype(np.float32)


def images(count=24, seed=0):
    """Channels that vary together, as those of an image do."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        smooth = np.repeat(np.repeat(rng.standard_normal((1, 12, 3, 3)), 3, axis=2), 3, axis=3)
        yield {"x": np.einsum("dc,bchw->bdhw", MIXED, smooth).astype(np.float32)}


def network():
    """Conv -> Relu -> Conv of groups -> rows -> MatMul -> Gemm behind a Cast of its weight."""
    b = graphs.Builder(18)
    x = b.input("x", [None, 12, 9, 9])

    def kernel(name, *shape):
        return b.constant(name, graphs.weight(shape[0], int(np.prod(shape[1:])), len(name)).reshape(shape))

    h = b.op("Relu", b.op("Conv", x, kernel("W1", 24, 12, 3, 3), name="first"), name="relu")
    h = b.op("Conv", h, kernel("W", 48, 6, 3, 3), name="grouped", group=4)
    rows = b.op("Reshape", b.op("Transpose", h, perm=[0, 2, 3, 1]), b.constant("rows", np.array([-1, 48], np.int64)))
    h = b.op("MatMul", rows, b.constant("W3", graphs.weight(48, 64, 3)), name="product")
    half = b.op("Cast", b.constant("W4", graphs.weight(32, 64, 4, np.float16)), to=1)
    b.output(b.op("Gemm", h, half, name="gemm", transB=1), [None, 32])
    return b.model()


def loss(path, reference, feeds):
    """Squared error of the outputs, of their energy."""
    got, want = (
        [open_session(p, session_options(ours=True)).run(None, feed)[0] for feed in feeds] for p in (path, reference)
    )
    return np.square(np.subtract(got, want)).sum() / np.square(want).sum()


@pytest.mark.parametrize("scheme", ["int4", "int3", "bfp4", "nf4", "fp4", "fp6", "mxfp4"])
def test_the_outputs_gain(scheme, tmp_path):
    """Of data that was not seen, whatever the form of the weight."""
    ir.save(network(), tmp_path / "m.onnx")
    recipe = Recipe(scheme=scheme, accuracy_level=0)
    losses = []
    for name, calibration in (("plain", None), ("data", Calibration(lambda: images()))):
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / f"{name}.onnx", calibration=calibration)
        losses.append(loss(report.output, str(tmp_path / "m.onnx"), list(images(8, seed=1))))
        assert ("calibrated on" in dict(report.rows)) == (calibration is not None)
    assert report.details["samples"] == 24
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("method", ["hqq", "signround"])
def test_methods(method, tmp_path):
    """What one of them makes worse is rounded to nearest; the grouped convolution is among what is made better."""
    ir.save(network(), tmp_path / "m.onnx")
    recipe = Recipe(scheme="int3" if method == "hqq" else "nf4", method=method, accuracy_level=0)
    report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=Calibration(lambda: images()))
    rounded = report.details["rounded"]
    assert all(each["cost"] <= each["plain"] for each in rounded.values())
    assert {each["method"] for each in rounded.values()} <= {"rtn", method}
    if method == "signround":
        assert rounded["W"]["method"] == "signround"
        assert sum(each["cost"] for each in rounded.values()) < sum(each["plain"] for each in rounded.values())


@pytest.mark.parametrize("form", ["qdq", "onnxpress"])
def test_forms(form, tmp_path):
    ir.save(network(), tmp_path / "m.onnx")
    losses = []
    for calibration in (None, Calibration(lambda: images())):
        recipe = Recipe(scheme="int4", form=form, accuracy_level=0 if form != "qdq" else None)
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=calibration)
        losses.append(loss(report.output, str(tmp_path / "m.onnx"), list(images(8, seed=1))))
    assert losses[1] < 0.8 * losses[0]


def test_without_compensation_nothing_is_read(tmp_path):
    def unread():
        raise AssertionError("data was read")
        yield

    with pytest.raises(UsageError, match="reads no calibration data"):
        optimize(network(), Recipe(method="rtn"), tmp_path / "m.onnx", calibration=Calibration(unread))


def test_bad_data_is_told_before_anything_is_written(tmp_path):
    def wrong():
        yield from images(2)
        yield {"x": np.zeros((1, 5, 9, 9), np.float32)}

    with pytest.raises(OnnxpressError, match="x"):
        optimize(network(), Recipe(), tmp_path / "m.onnx", calibration=Calibration(wrong))
    with pytest.raises(UsageError, match="no samples"):
        optimize(network(), Recipe(), tmp_path / "m.onnx", calibration=Calibration(lambda: iter(())))
    assert not list(tmp_path.iterdir())


def test_weights_that_read_no_finite_numbers_are_rounded_as_without_data(tmp_path):
    """Here the last three, whose inputs have squares that overflow."""
    model = network()
    first = model.graph.initializers["W1"]
    first.const_value = ir.tensor(first.const_value.numpy() * np.float32(1e25), name="W1")
    ir.save(model, tmp_path / "m.onnx")
    plain, learnt = (
        optimize(tmp_path / "m.onnx", Recipe(scheme="nf4", check=False), tmp_path / "out.onnx", calibration=data)
        for data in (None, Calibration(lambda: images()))
    )
    same = [a.sqnr == b.sqnr for a, b in zip(plain.weights, learnt.weights, strict=True)]
    assert sum(same) == 3


def test_data_that_is_asked_for_has_to_be_there(tmp_path):
    with pytest.raises(UsageError, match="this has to see data"):
        optimize(network(), Recipe(method="gptq"), tmp_path / "m.onnx")


def test_what_a_branch_reads_cannot_be_seen(tmp_path):
    """Its weight is rounded as without data, that of the graph around it with them, though the nodes have one name."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[n, 64] x, bool which) => (float[n, 48] y) {
        [product] h = MatMul(x, A)
        y = If(which) <then_branch = t () => (float[n, 48] a) { [product] a = MatMul(h, B) },
                       else_branch = e () => (float[n, 48] b) { [product] c = MatMul(h, B) b = Neg(c) }>
    }"""
    model = onnx.parser.parse_model(text)
    for name, N in (("A", 64), ("B", 48)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(graphs.weight(64, N, N), name))
    rows = RNG.standard_normal((200, 8)) @ RNG.standard_normal((8, 64))
    data = [{"x": rows.astype(np.float32), "which": np.array(True)}]
    made = []
    for calibration in (None, Calibration(data)):
        onnx.save(model, tmp_path / "m.onnx")
        recipe = Recipe(scheme="nf4", block_size=16)
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=calibration)
        arrays = onnx.load(report.output).graph.initializer
        made.append({each.name: onnx.numpy_helper.to_array(each).tobytes() for each in arrays if "codes" in each.name})
    changed = {name for name in made[0] if made[0][name] != made[1][name]}
    assert changed == {"A_nf4_codes"}
    assert made[0].keys() == {"A_nf4_codes", "B_nf4_codes"}


def test_of_several_methods_each_weight_gets_the_best(tmp_path):
    ir.save(network(), tmp_path / "m.onnx")
    costs = {}
    for method in ("search", "gptq", "search, gptq"):
        recipe = Recipe(scheme="int3", method=method, overrides=(Override(op_type="Gemm", keep_float=True),))
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=Calibration(lambda: images()))
        costs[report.recipe["method"]] = report.details["rounded"]["W3"]["cost"]
    assert costs["search,gptq"] == min(costs["search"], costs["gptq"])
    with pytest.raises(UsageError, match='method is "gptk"'):
        Recipe(method="rtn,gptk")


def test_at_once_each_weight_is_rounded_by_what_the_float_model_shows(tmp_path):
    """As alone, however many are rounded before it; in order it sees what they make of the data."""
    b = graphs.Builder(18)
    h = b.input("x", [None, 64])
    for index in range(2):
        h = b.op("MatMul", h, b.constant(f"W{index}", graphs.weight(64, 64, index)), name=f"layer{index}")
    b.output(h, [None, 64])
    ir.save(b.model(), tmp_path / "m.onnx")
    rows = np.random.default_rng(2).standard_normal((256, 8)) @ np.random.default_rng(3).standard_normal((8, 64))

    def second(**settings):
        recipe = Recipe(scheme="int2", accuracy_level=0, check=False, **settings)
        data = Calibration([{"x": part.astype(np.float32)} for part in np.split(rows, 8)])
        made = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=data)
        (node,) = (node for node in onnx.load(made.output).graph.node if node.name == "layer1")
        tensors = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(made.output).graph.initializer}
        return tensors[node.input[1]].tobytes()

    alone = second(exclude=("layer0",))
    assert second(sequential=False) == alone
    assert second() != alone


@pytest.mark.parametrize(("sequential", "method"), [(True, "qronos"), (False, "gptq")])
def test_the_method_by_default(tmp_path, sequential, method):
    """At once there is but one path, with which Qronos is GPTQ; the report has the name of what was done."""
    ir.save(network(), tmp_path / "m.onnx")
    made = []
    for given in (None, method):
        recipe = Recipe(scheme="int3", sequential=sequential, method=given)
        data = Calibration(lambda: images())
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=data)
        assert report.recipe["method"] == method
        made.append((report.details["rounded"], (tmp_path / "out.onnx").read_bytes()))
    assert {each["method"] for each in made[0][0].values()} <= {"rtn", method}
    assert method in {each["method"] for each in made[0][0].values()}
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "qronos"}, "sequential is false, but qronos rounds towards the float path"),
        ({"method": "rtn"}, "sequential is false, but no weight is rounded by data"),
        ({}, "sequential is false, but no weight is rounded by data"),
    ],
)
def test_at_once_where_nothing_is_rounded_by_data(tmp_path, settings, message):
    ir.save(network(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=message):
        optimize(tmp_path / "m.onnx", Recipe(sequential=False, **settings), tmp_path / "out.onnx")


@pytest.mark.parametrize("flat", [False, True])
def test_what_is_read_of_padding_does_not_count(tmp_path, flat):
    """Weights are rounded as if there were no padding: [batch, tokens, K], and rows of it."""
    b = graphs.Builder(18)
    h = b.input("x", [None, None, 64])
    b.input("attention_mask", [None, None], ir.DataType.INT64)
    if flat:
        h = b.op("Reshape", h, b.constant("rows", np.array([-1, 64], np.int64)))
    y = b.op("MatMul", h, b.constant("W", graphs.weight(64, 64, 0)), name="layer")
    b.output(y, [None] * (2 if flat else 3))
    ir.save(b.model(), tmp_path / "m.onnx")
    rng = np.random.default_rng(2)
    tokens = (rng.standard_normal((16, 5, 8)) @ rng.standard_normal((8, 64))).astype(np.float32)
    padding = 30 * rng.standard_normal((16, 3, 64)).astype(np.float32)
    mask = np.repeat([[1, 0]], [5, 3], axis=1) * np.ones((16, 1), np.int64)

    def weight(x, mask):
        data = Calibration([{"x": x[i : i + 4], "attention_mask": mask[i : i + 4]} for i in range(0, 16, 4)])
        recipe = Recipe(scheme="int2", accuracy_level=0, check=False)
        made = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=data)
        return [onnx.numpy_helper.to_array(each).tobytes() for each in onnx.load(made.output).graph.initializer]

    bare = weight(tokens, mask[:, :5])
    padded = np.concatenate([tokens, padding], 1)
    assert weight(padded, mask) == bare
    assert weight(padded, np.ones_like(mask)) != bare


def test_a_product_that_reads_a_constant_is_rounded_without_data():
    """Which is none itself, for its bias is a default that callers may replace."""
    b = graphs.Builder(18)
    x = b.input("x", [4, 64])
    table = b.op("Identity", b.constant("table", RNG.standard_normal((4, 64)).astype(np.float32)))
    bias = b.constant("bias", np.ones(64, np.float32))
    b.graph.inputs.append(bias)
    fixed = b.op("Gemm", table, b.constant("V", graphs.weight(64, 64)), bias, name="fixed")
    y = b.op("MatMul", b.op("Add", x, fixed), b.constant("W", graphs.weight(64, 64, 1)), name="read")
    b.output(y, [4, 64])
    data = [{"x": RNG.standard_normal((4, 64)).astype(np.float32)} for _ in range(4)]
    report = optimize(b.model(), Recipe(method="gptq", clean_up=False), calibration=Calibration(data))
    assert {node for weight in report.weights for node in weight.nodes} == {"fixed", "read"}
