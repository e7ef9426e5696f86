"""The study of sparsity on a small model, with a task of its own."""

from __future__ import annotations

import json

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.models import tasks
from onnxpress.models.tasks.task import Score, Task
from onnxpress.optimizer.analysis.plots import plot_study
from onnxpress.optimizer.analysis.sparsity_study import study_sparsity
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError, UsageError

X = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A model, and the task of giving the same as before; `judged` counts."""
    file = tmp_path / "model.onnx"
    ir.save(graphs.matmul_model(64, 64, bias=True), file)
    want = X @ graphs.weight(64, 64) + graphs.weight(1, 64, 1)
    judged = []

    def same(session, model):
        judged.append(model.name)
        return Score(-float(np.square(session.run(None, {"x": X})[0] - want).mean()))

    task = Task("same", "minus error", "", "", lambda session: True, same)
    monkeypatch.setattr(tasks, "TASKS", {"same": task})
    return file, judged


@pytest.mark.usefixtures("probe_within_process")
def test_curve(path, tmp_path):
    model, judged = path
    given = {
        "sparsities": (0.5, 0.8), "calibration": Calibration([{"x": X}]), "dims": {"batch": 3}, "rounds": 1,
    }  # fmt: skip
    study = study_sparsity(str(model), tmp_path / "study", **given)
    assert [(p.block, p.criterion, p.sparsity) for p in study.points] == [
        ("", "", 0.0), ("4x4", "obs", 0.5), ("4x4", "obs", 0.8), ("4x4", "magnitude", 0.5), ("4x4", "magnitude", 0.8),
    ]  # fmt: skip
    scores = [point.scores["same"] for point in study.points]
    assert scores[0] > scores[1] > scores[2]
    assert scores[1] > scores[3] > scores[4]
    assert study.points[0].ratio == 1.0
    assert all(point.milliseconds > 0 for point in study.points)
    assert json.loads(study.to_json())["metrics"] == {"same": "minus error"}
    plot_study(study, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")

    seen = list(judged)
    more = study_sparsity(str(model), tmp_path / "study", blocks=("4x4", "4x1"), **{**given, "dims": None})
    assert sorted(set(judged[len(seen) :])) == [
        f"model.4x1.{c}.{s}.onnx" for c in ("magnitude", "obs") for s in (50, 80)
    ]
    assert [p.scores["same"] for p in more.points if p.block != "4x1"] == scores
    assert more.machine == ""
    plot_study(more, tmp_path / "study.png")


def test_wrong_settings(path, tmp_path):
    model, _ = path
    for values in ({"sparsities": (1.5,)}, {"blocks": ("4",)}, {"criteria": ("size",)}):
        with pytest.raises(UsageError):
            study_sparsity(str(model), tmp_path / "study", **values)
    with pytest.raises(UsageError, match="cannot make the folder"):
        study_sparsity(str(model), model)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "scores.json").write_text("[1]")
    with pytest.raises(OnnxpressError, match="not the scores of a study"):
        study_sparsity(str(model), tmp_path / "study")
