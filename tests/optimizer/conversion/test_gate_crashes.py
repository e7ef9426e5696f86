"""Models on which ONNX Runtime crashes: what is left of a conversion, and what is told."""

from __future__ import annotations

import signal

import pytest
from graphs import chain
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.conversion import session_process


class TestCrashes:
    """A process that dies stands for ONNX Runtime that crashes on a model."""

    @pytest.fixture(autouse=True)
    def _none_is_spare(self):
        session_process._SPARE.end()

    def test_on_the_original(self, tmp_path, monkeypatch):
        monkeypatch.setattr(session_process, "_START", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        report = optimize(chain(), Recipe(), tmp_path / "out.onnx")
        line = "names and nodes; not by a run: ONNX Runtime ended with signal SIGSEGV"
        assert ("checked", line) in report.rows
        assert report.warnings == ()
        assert report.details["check"]["run_on"] is None

    @pytest.mark.parametrize("status", [0, 7])
    def test_a_process_that_ends_by_itself(self, tmp_path, monkeypatch, status):
        monkeypatch.setattr(session_process, "_START", f"raise SystemExit({status})")
        report = optimize(chain(), Recipe(), tmp_path / "out.onnx")
        assert f"not by a run: ONNX Runtime ended with exit status {status}" in dict(report.rows)["checked"]

    def test_on_what_clean_up_made(self, tmp_path, monkeypatch):
        _crash_on(monkeypatch, lambda name: name == "the model")
        report = optimize(chain(), Recipe(), tmp_path / "out.onnx")
        assert report.warnings[0].startswith("clean-up was put aside: what it makes does not run: ONNX Runtime ended")
        assert (tmp_path / "out.onnx").exists()

    def test_on_the_result(self, tmp_path, monkeypatch):
        _crash_on(monkeypatch, lambda name: name.endswith("out.onnx"))
        report = optimize(chain(), Recipe(), tmp_path / "out.onnx")
        assert report.warnings == ("the result does not run here: ONNX Runtime ended with signal SIGSEGV",)
        assert (tmp_path / "out.onnx").exists()

    def test_no_process_can_be_started(self, tmp_path, monkeypatch):
        monkeypatch.setattr(session_process.sys, "executable", str(tmp_path / "none"))
        report = optimize(chain(), Recipe(), tmp_path / "out.onnx")
        assert "not by a run: no process can be started to run it: No such file" in dict(report.rows)["checked"]


def _crash_on(monkeypatch, wanted):
    whole = session_process.SessionProcess.open

    def opened(self, model, name, **more):
        self.start()
        if wanted(name):
            self._process.send_signal(signal.SIGSEGV)
            self._process.wait()
        return whole(self, model, name, **more)

    monkeypatch.setattr(session_process.SessionProcess, "open", opened)
