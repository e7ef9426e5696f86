"""The cheapest recipe within a bound, found by trying."""

from __future__ import annotations

from pathlib import Path

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.runtime.session import open_session, session_options

WIDTH, LAYERS = 64, 5


def network(path):
    """Products with activations that vary together between them."""
    b = graphs.Builder(18)
    h = b.input("x", [None, WIDTH])
    for index in range(LAYERS):
        h = b.op("MatMul", h, b.constant(f"W{index}", graphs.weight(WIDTH, WIDTH, index)), name=f"layer{index}")
        h = b.op("Tanh", h) if index % 2 else h
    b.output(h, [None, WIDTH])
    ir.save(b.model(), path)
    return path


MIXED = np.random.default_rng(0).standard_normal((12, WIDTH))


def rows(seed, count=16):
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal((32, 12)) @ MIXED).astype(np.float32)} for _ in range(count)]


def signal_to_noise(path):
    """A metric: of a session's outputs against the float model's, on rows of its own."""
    feeds = rows(99, 4)
    wanted = [open_session(path, session_options()).run(None, feed)[0] for feed in feeds]

    def metric(session):
        got = [session.run(None, feed)[0] for feed in feeds]
        lost, whole = (float(np.square(each).sum()) for each in (np.subtract(got, wanted), wanted))
        return 1 - np.sqrt(lost / whole)

    return metric


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Optimizes the network within a bound; the report and the converted file."""
    folder = tmp_path_factory.mktemp("automatic")
    path = network(folder / "m.onnx")
    metric = signal_to_noise(path)

    def run(bound=None, data=True, **settings):
        calibration = Calibration(lambda: iter(rows(1))) if data else None
        metrics = {} if bound is None else {"metric": metric, "max_drop": bound}
        recipe = Recipe(scheme="int3", accuracy_level=0, check=False, **metrics, **settings)
        return optimize(path, recipe, folder / "out.onnx", calibration=calibration)

    run.metric = metric
    return run


def losses(report):
    return [attempt.loss for attempt in report.trail]


def test_rounding_to_nearest_is_enough(made):
    report = made(0.9)
    assert [attempt.recipe for attempt in report.trail] == ["int3 by rtn"]
    assert report.recipe["method"] == "rtn"
    assert not report.warnings
    assert "accuracy" in dict(report.rows)


def test_data_is_enough(made):
    plain, by_data = losses(made(1e-6))[:2]
    assert by_data < 0.9 * plain
    report = made((plain + by_data) / 2)
    assert [attempt.recipe for attempt in report.trail] == ["int3 by rtn", "int3 by qronos"]
    assert report.recipe["method"] == "qronos"
    assert report.details["metric"]["int3"] == pytest.approx(1 - by_data)


def test_a_few_weights_get_more_bits(made):
    """Without data. As few as it takes: with one less the bound does not hold."""
    trail = made(1e-9, data=False).trail
    (whole,) = (attempt for attempt in trail if attempt.recipe == f"int3, {LAYERS} of {LAYERS} weights in 8 bits")
    report = made((trail[0].loss + whole.loss) / 2, data=False)
    count = int(fewest(report).recipe.split()[1])
    assert 1 <= count < LAYERS
    assert report.schemes == {"int3": LAYERS - count, "int8": count}
    if count > 1:
        assert f"int3, {count - 1} of {LAYERS} weights in 8 bits" in {
            attempt.recipe for attempt in report.trail if not attempt.accepted
        }
    assert_made_again(report, None)


@pytest.mark.parametrize("part", [0.5, 0.2])
def test_weights_get_several_widths(made, part):
    """With data: fewer bytes than 8 bits take, so few that the bound is nearly reached."""
    by_data = made(1e-9).trail[1].loss
    report = made(part * by_data)
    found = fewest(report)
    assert "bits per weight" in found.recipe
    assert found.loss > 0.5 * part * by_data
    assert len(report.schemes) > 1
    assert report.recipe["method"] == "qronos"
    assert_made_again(report, Calibration(lambda: iter(rows(1))))


def fewest(report):
    """The smallest of the models within the bound, which is the one that is written."""
    found = min((attempt for attempt in report.trail if attempt.accepted), key=lambda attempt: attempt.size)
    assert report.details["metric"]["int3"] == pytest.approx(found.value)
    return found


def assert_made_again(report, calibration):
    """The recipe that is reported makes the same model."""
    first = Path(report.output).read_bytes()
    again = optimize(report.source, Recipe.from_mapping(report.recipe), report.output, calibration=calibration)
    assert again.recipe == report.recipe
    assert Path(report.output).read_bytes() == first


def test_no_time_to_search(made):
    """What was begun is ended."""
    report = made(1e-9, search_time="0.001s")
    assert [attempt.recipe for attempt in report.trail] == ["int3 by rtn"]
    assert "search_time" not in report.recipe
    assert report.warnings


def test_a_bound_that_nothing_meets_is_told(made):
    report = made(1e-9)
    assert report.warnings == ("the bound on the metric was not met; this is the best that was tried",)
    tried = [attempt.recipe for attempt in report.trail]
    assert f"{LAYERS - 1} of {LAYERS} weights in float, the others in 8 bits" in tried
    assert not any(attempt.accepted for attempt in report.trail)


def test_outputs_are_compared_where_there_is_no_metric(made, tmp_path):
    path = network(tmp_path / "m.onnx")
    report = optimize(
        path, Recipe(scheme="int3", max_drop=0.5, check=False), calibration=Calibration(lambda: iter(rows(1)))
    )
    assert report.details["metric"]["name"] == "cosine of outputs"
    with pytest.raises(UsageError, match="has to see data"):
        optimize(path, Recipe(scheme="int3", max_drop=0.5), tmp_path / "out.onnx")


def test_a_metric_that_nothing_reads_is_refused(made, tmp_path):
    with pytest.raises(UsageError, match="not judged without a bound"):
        optimize(network(tmp_path / "m.onnx"), Recipe(metric=made.metric), tmp_path / "out.onnx")


@pytest.mark.parametrize(
    "settings", [{"scheme": "fp6"}, {"scheme": "mxfp4"}, {"scheme": "nf4", "scale_type": "bfloat16"}]
)
def test_formats_whose_blocks_or_scales_integers_have_not(made, tmp_path, settings):
    recipe = Recipe(check=False, metric=made.metric, max_drop=1e-9, **settings)
    calibration = Calibration(lambda: iter(rows(1)))
    report = optimize(network(tmp_path / "m.onnx"), recipe, tmp_path / "out.onnx", calibration=calibration)
    assert any("in 8 bits" in attempt.recipe for attempt in report.trail)
