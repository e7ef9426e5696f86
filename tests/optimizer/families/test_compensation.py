"""Products of low rank beside rounded weights, in graphs."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from onnxpress.optimizer import Override, Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.runtime.session import open_session, session_options
from pairs import all_pairs

K, N = 160, 96
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def samples(seed=0, count=6, kind=np.float32):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).standard_normal((24, K)) / 5
    return [{"x": (rng.standard_normal((64, 24)) @ mixing).astype(kind)} for _ in range(count)]


def product(op_type="MatMul", kind=np.float32, **attributes):
    """y = x W + b, or a Gemm with everything there is to it."""
    b = graphs.Builder(21)
    dtype = ir.DataType.from_numpy(np.dtype(kind))
    x = b.input("x", [64, K], dtype)
    if op_type == "MatMul":
        y = b.op("MatMul", x, b.constant("W", graphs.weight(K, N, 0, kind)), name="product")
        y = b.op("Add", y, b.constant("b", graphs.weight(1, N, 1, kind)[0]))
    else:
        x = b.op("Transpose", x, perm=[1, 0])
        W, C = b.constant("W", graphs.weight(N, K, 0, kind)), b.constant("C", graphs.weight(64, N, 1, kind))
        y = b.op("Gemm", x, W, C, name="product", transA=1, transB=1, alpha=0.5, beta=2.0)
    b.output(y, [64, N], dtype)
    return b.model(10)


def lost(path, wanted, feeds, level=LEVELS[1], *, provider=False):
    options = session_options(ours=True)
    options.graph_optimization_level = level
    if provider:
        ep.register()
        ep.append(options)
    got = open_session(path, options).run(None, feeds)[0]
    assert got.dtype == wanted.dtype
    return float(np.square(got - np.float64(wanted)).sum() / np.square(wanted, dtype=np.float64).sum())


WRITTEN = [
    *((scheme, "qoperator") for scheme in ("int3", "int4", "nf4", "mxfp4", "bfp4")), ("int2", "onnxpress"),
    ("int4", "onnxpress"), *((scheme, "qdq") for scheme in ("int2", "int6", "fp8")),
]  # fmt: skip


@all_pairs({
    "scheme,form": WRITTEN, "op_type": ["MatMul", "Gemm"], "with_data": [True, False], "kind": [np.float32, np.float16],
})  # fmt: skip
def test_the_error_falls_in_every_form(scheme, form, op_type, with_data, kind, tmp_path):
    """To the same on ONNX Runtime with all optimizations and without, and on the execution provider."""
    model, feeds = product(op_type, kind), samples(seed=5, count=1, kind=kind)[0]
    ir.save(model, tmp_path / "m.onnx")
    wanted = open_session(str(tmp_path / "m.onnx"), session_options()).run(None, feeds)[0]
    calibration = Calibration(samples(kind=kind)) if with_data else None
    found = {}
    for rank in (0, 24):
        recipe = Recipe(scheme=scheme, form=form, rank=rank, accuracy_level=0)
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / f"{rank}.onnx", calibration=calibration)
        onnx.checker.check_model(onnx.load(report.output), full_check=True)
        found[rank] = [lost(report.output, wanted, feeds, level) for level in LEVELS]
        found[rank].append(lost(report.output, wanted, feeds, provider=True))
    told = report.details["compensated"]["W"]
    assert (told["rank"], told["by_data"]) == (24, with_data)
    assert 0 < told["after"] < 0.9 * told["before"]
    assert 24 * (K + N) < told["bytes"] < 1.3 * 24 * (K + N)
    for none, added in zip(found[0], found[24], strict=True):
        assert added < 0.9 * none
        assert added == pytest.approx(found[24][0], rel=0.05, abs=1e-5)


def test_what_the_report_says_is_what_the_model_loses(tmp_path):
    ir.save(product(), tmp_path / "m.onnx")
    report = optimize(
        tmp_path / "m.onnx", Recipe(scheme="int3", rank=16, accuracy_level=0), tmp_path / "out.onnx",
        calibration=Calibration(samples()),
    )  # fmt: skip
    told = report.details["compensated"]["W"]
    feeds = samples(seed=9, count=8)
    wanted = [open_session(str(tmp_path / "m.onnx"), session_options()).run(None, each)[0] for each in feeds]
    bias = graphs.weight(1, N, 1)[0]
    squares = sum(lost(report.output, y, x) * np.square(y).sum() for x, y in zip(feeds, wanted, strict=True))
    energy = sum(np.square(y - bias).sum() for y in wanted)
    assert squares / energy == pytest.approx(told["after"] / told["energy"], rel=0.3)
    assert dict(report.rows)["compensated"].startswith("1 by rank 16, ")
    assert report.weights[0].stored > told["bytes"]


def test_a_weight_that_two_nodes_share_has_its_factors_once(tmp_path):
    b = graphs.Builder(21)
    W = b.constant("W", graphs.weight(K, K))
    y = b.op("MatMul", b.op("Tanh", b.op("MatMul", b.input("x", [64, K]), W, name="first")), W, name="second")
    b.output(y, [64, K])
    report = optimize(b.model(10), Recipe(scheme="int4", rank=8, accuracy_level=0), tmp_path / "out.onnx")
    proto = onnx.load(report.output)
    assert sum("low_rank" in each.name and "codes" in each.name for each in proto.graph.initializer) == 2
    assert [node.op_type for node in proto.graph.node].count("MatMulNBits") == 6


def test_graphs_inside_nodes(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 160] x, bool which) => (float[n, 96] y) {
        y = If(which) <then_branch = t () => (float[n, 96] a) { [inside] a = MatMul(x, W) },
                       else_branch = e () => (float[n, 96] b) { [also] c = MatMul(x, W) b = Neg(c) }>
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(graphs.weight(K, N), "W"))
    onnx.save(model, tmp_path / "m.onnx")
    for form in ("qoperator", "qdq"):
        made = []
        for rank in (0, 16):
            recipe = Recipe(scheme="int4", form=form, rank=rank, accuracy_level=0)
            report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx")
            for which in (True, False):
                feeds = {**samples(count=1)[0], "which": np.array(which)}
                wanted = open_session(str(tmp_path / "m.onnx"), session_options()).run(None, feeds)[0]
                made.append(lost(report.output, wanted, feeds))
        assert made[2] < 0.9 * made[0]
        assert made[3] < 0.9 * made[1]


def test_what_gets_none_says_why(tmp_path):
    b = graphs.Builder(21)
    V = b.constant("V", graphs.weight(32, 72).reshape(32, 8, 3, 3))
    x = b.op("Conv", b.input("x", [1, 8, 9, 9]), V, name="conv")
    rows = b.op("Reshape", x, b.constant("shape", np.array([-1, 32], np.int64)))
    h = b.op("MatMul", rows, b.constant("W", graphs.weight(32, 64)), name="narrow")
    y = b.op("MatMul", h, b.constant("U", graphs.weight(64, 256)), name="wide")
    b.output(b.op("MatMul", y, b.constant("T", graphs.weight(256, 64)), name="without"), [None, 64])
    recipe = Recipe(scheme="nf4", rank=24, overrides=(Override(match="without", rank=0),))
    report = optimize(b.model(10), recipe, tmp_path / "out.onnx")
    assert report.passes["AddLowRank"] == {
        "conv": "products of low rank are added to MatMul and Gemm alone, not to Conv",
        "narrow": "a product of rank 24 has as many numbers as the weight, [32, 64]",
    }
    assert report.details["compensated"].keys() == {"U"}
    report = optimize(product(), Recipe(rank=4096), tmp_path / "out.onnx")
    assert report.warnings == (
        "no product of low rank was added: a product of rank 4096 has as many numbers as the weight, [160, 96]",
    )


def test_nothing_is_added_that_harms_other_rows(tmp_path, monkeypatch):
    """Here because what is fitted is turned around."""
    from onnxpress.optimizer.families.weight_only import compensation

    fit = compensation.fit_low_rank
    monkeypatch.setattr(compensation, "fit_low_rank", lambda *given: (-fit(*given)[0], fit(*given)[1]))
    files = []
    for rank in (0, 16):
        recipe = Recipe(scheme="int4", rank=rank)
        report = optimize(product(), recipe, tmp_path / "out.onnx", calibration=Calibration(samples()))
        files.append([each.raw_data for each in onnx.load(report.output).graph.initializer])
    assert files[0] == files[1]
    assert "does not make its error smaller" in report.passes["AddLowRank"]["product"]


def test_the_same_bytes_again_and_after_an_interruption(tmp_path):
    class InterruptionError(Exception):
        pass

    def interrupt(stage, done, _total):
        if stage == "round" and done == 1:
            raise InterruptionError

    b = graphs.Builder(21)
    h = b.input("x", [64, K])
    for index in range(3):
        h = b.op("Tanh", b.op("MatMul", h, b.constant(f"W{index}", graphs.weight(K, K, index)), name=f"layer{index}"))
    b.output(h, [64, K])
    ir.save(b.model(10), tmp_path / "m.onnx")

    def convert(folder, rank=16, **given):
        calibration = Calibration(samples(), checkpoint=folder)
        recipe = Recipe(scheme="int3", rank=rank)
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=calibration, **given)
        return (tmp_path / "out.onnx").read_bytes(), report

    with pytest.raises(InterruptionError):
        convert(tmp_path / "kept", progress=interrupt)
    first, report = convert(tmp_path / "kept")
    assert len(report.details["compensated"]) == 3
    assert convert(tmp_path / "kept")[0] == first
    assert convert(None)[0] == first
    with pytest.raises(UsageError, match="other settings"):
        convert(tmp_path / "kept", rank=8)


def test_rounding_to_nearest_reads_data_for_what_is_added(tmp_path):
    recipe = Recipe(scheme="int3", rank=16, method="rtn")
    report = optimize(product(), recipe, tmp_path / "out.onnx", calibration=Calibration(samples()))
    assert report.details["compensated"]["W"]["by_data"]
    assert report.details["rounded"]["W"]["method"] == "rtn"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank is -1, must be at least 0"),
        ({"rank": 2.5}, "rank is 2.5, must be a whole number"),
        ({"rank": 8, "scheme": "int8-static"}, "rank: not read by scheme int8-static"),
        ({"rank": 8, "method": "gptq,dwq"}, "trains the codes without what is added"),
        ({"rank": 8, "max_drop": 0.01}, "max_drop chooses among roundings alone"),
        ({"max_kl": 0.1, "overrides": (Override(match="a", rank=4),)}, "rank is 4, but max_kl"),
    ],
)
def test_what_it_does_not_go_with(settings, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**settings)


def test_logits_of_the_last_token_alone(tmp_path):
    """The products beside that of the logits are cut as well."""
    b = graphs.Builder(21)
    y = b.op("MatMul", b.op("Relu", b.input("x", [2, 9, K])), b.constant("W", graphs.weight(K, N)), name="head")
    b.output(y, ["batch", "sequence", N])
    x = np.random.default_rng(3).standard_normal((2, 9, K)).astype(np.float32)
    ir.save(b.model(10), tmp_path / "m.onnx")
    found = []
    for last in (False, True):
        recipe = Recipe(rank=16, accuracy_level=0, last_logits=last)
        report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx")
        assert not report.warnings
        found.append(open_session(report.output, session_options()).run(None, {"x": x})[0])
    np.testing.assert_allclose(found[1], found[0][:, -1:], atol=1e-5)
