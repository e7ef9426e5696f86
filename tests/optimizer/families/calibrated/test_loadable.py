"""What ONNX Runtime refuses with codes stays in float, and no more than that."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.families.calibrated.loadable import _fewest
from onnxpress.optimizer.passes.plain_average_pool import PlainAveragePool
from onnxpress.optimizer.passes.resize_all_axes import ResizeAllAxes
from onnxpress.optimizer.settings.recipe import Recipe
from rewrites import LEVELS, rewritten, run
from sessions import RUNS_FLOAT8_PRODUCTS

RNG = np.random.default_rng(0)
DATA = [{"x": RNG.standard_normal((1, 8, 11, 12)).astype(np.float32)} for _ in range(4)]


def kernel(b, name, *shape):
    return b.constant(name, 0.2 * RNG.standard_normal(shape).astype(np.float32))


def between(make, opset=19, convolutions=True):
    """A node between convolutions."""
    b = graphs.Builder(opset)
    y = b.input("x", [1, 8, 11, 12])
    if convolutions:
        y = b.op("Relu", b.op("Conv", y, kernel(b, "first", 16, 8, 3, 3), name="conv_1", pads=[1] * 4))
    y = make(b, y)
    if convolutions:
        y = b.op("Conv", y, kernel(b, "second", 16, 16, 1, 1), name="conv_2")
        y = b.op("Conv", y, kernel(b, "third", 16, 16, 1, 1), name="conv_3")
    b.output(y, ["a", "b", "c", "d"])
    return b.model()


def pool(**attributes):
    return lambda b, y: b.op("AveragePool", y, name="pool", kernel_shape=[3, 3], **attributes)


def resize(*, axes=None, scales=None, sizes=None, roi=None, **attributes):
    given = (("roi", roi, np.float32), ("scales", scales, np.float32), ("sizes", sizes, np.int64))
    attributes |= {"axes": axes} if axes else {}

    def make(b, y):
        inputs = [None if value is None else b.constant(name, np.array(value, kind)) for name, value, kind in given]
        return b.op("Resize", y, *inputs, name="resize", **attributes)

    return make


CASES = {
    "dilations": pool(dilations=[2, 2]), "dilations of one": pool(dilations=[1, 1], strides=[2, 2]),
    "ceil": pool(ceil_mode=1, strides=[2, 2]), "ceil, counted": pool(ceil_mode=1, count_include_pad=1, strides=[2, 2]),
    "ceil, padded": pool(ceil_mode=1, count_include_pad=1, strides=[2, 2], pads=[1] * 4),
    "ceil, padded unevenly": pool(ceil_mode=1, count_include_pad=1, strides=[2, 2], pads=[0, 0, 1, 1]),
    "counted": pool(count_include_pad=1, pads=[1] * 4), "same": pool(auto_pad="SAME_LOWER", strides=[2, 2]),
    "sizes": resize(axes=[2, 3], sizes=[20, 20], mode="linear"),
    "scales": resize(axes=[3, 2], scales=[2, 3], mode="nearest"),
    "one axis": resize(axes=[-1], scales=[2], mode="linear"), "all axes": resize(scales=[1, 1, 2, 2], mode="linear"),
    "cubic": resize(scales=[1, 1, 0.5, 0.5], mode="cubic"),
    "ratio": resize(axes=[2, 3], sizes=[20, 20], mode="linear", keep_aspect_ratio_policy="not_larger"),
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["int8-static", "fp8-static"])
@pytest.mark.parametrize("case", CASES)
def test_the_rest_is_converted_and_every_level_means_the_same(case, scheme):
    if not RUNS_FLOAT8_PRODUCTS and (scheme == "fp8-static" or case in ("sizes", "one axis", "all axes")):
        pytest.skip("older versions of ONNX Runtime refuse FLOAT8 products, and interpolate codes more coarsely")
    model = between(CASES[case])
    want = run(model, DATA[0])[0]
    settings = {"first_and_last": True} if scheme == "fp8-static" else {"reduce_range": True}
    report = optimize(model, Recipe(scheme=scheme, **settings), calibration=Calibration(DATA))
    hard = case in ("cubic", "ratio") and scheme == "int8-static"
    assert report.rewritten["Conv"] == (2 if hard else 3)
    assert not hard or any("refuses the model with its rounded form" in reason for reason in report.left)
    results = [run(model, DATA[0], level)[0] for level in LEVELS]
    for got in results:
        assert np.abs(got - want).max() <= (0.2 if scheme == "fp8-static" else 0.08) * np.abs(want).max()
    if scheme == "int8-static":
        assert np.abs(results[0] - results[1]).max() <= 0.02 * np.abs(want).max()


@pytest.mark.parametrize("case", ["dilations", "dilations of one", "ceil, counted", "ceil, padded"])
def test_a_pool_in_another_form_is_the_same(case):
    model = between(CASES[case], convolutions=False)
    kinds = ["AveragePool", "Max"] if case in ("dilations", "ceil, padded") else ["AveragePool"]
    assert rewritten(model, PlainAveragePool(), DATA[0], depth=9) == kinds
    assert not PlainAveragePool()(model)


@pytest.mark.parametrize("case", ["ceil", "counted", "same"])
def test_other_pools_stay(case):
    assert not PlainAveragePool()(between(CASES[case], convolutions=False))


@pytest.mark.parametrize("shape", [[1, 8, 11, 12], ["n", 8, "h", 12]])
@pytest.mark.parametrize("case", ["sizes", "scales", "one axis"])
def test_a_resize_of_all_axes_is_the_same(case, shape):
    if not RUNS_FLOAT8_PRODUCTS and case == "one axis":
        pytest.skip("older versions of ONNX Runtime refuse it as it is")
    model = between(CASES[case], convolutions=False)
    model.graph.inputs[0].shape = ir.Shape(shape)
    kinds = rewritten(model, ResizeAllAxes(), DATA[0], depth=9)
    assert kinds == (["Shape", "ScatterElements", "Resize"] if case == "sizes" and "n" in shape else ["Resize"])
    assert not ResizeAllAxes()(model)


def test_a_region_of_some_axes():
    make = resize(
        axes=[2, 3], sizes=[7, 9], roi=[0.1, 0.2, 0.8, 0.9], mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
    )  # fmt: skip
    assert rewritten(between(make, convolutions=False), ResizeAllAxes(), DATA[0], depth=20) == ["Resize"]


def test_other_resizes_stay():
    assert not ResizeAllAxes()(between(CASES["ratio"], convolutions=False))
    unknown = between(CASES["sizes"], convolutions=False)
    unknown.graph.inputs[0].shape = None
    assert not ResizeAllAxes()(unknown)


@pytest.mark.parametrize("needed", [{"c"}, {"a", "h"}, {"b", "c", "g"}, set("abcdefgh")])
def test_the_fewest_are_found(needed):
    assert set(_fewest("abcdefgh", lambda kept: needed <= set(kept))) == needed


def test_a_product_by_a_number_of_more_axes_is_no_change_of_scale():
    """Its result has the axes of the number."""

    def make(b, y):
        wide = b.op("Mul", y, b.constant("k", np.full((1, 1, 1, 1, 1), 3, np.float32)))
        return b.op("Squeeze", b.op("Relu", wide), b.constant("axis", np.array([0])))

    model = between(make)
    want = run(model, DATA[0])[0]
    optimize(model, Recipe(scheme="int8-static", reduce_range=True), calibration=Calibration(DATA))
    assert np.abs(run(model, DATA[0])[0] - want).max() <= 0.08 * np.abs(want).max()
