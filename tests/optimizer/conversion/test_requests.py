"""What may be asked for, from Python and on the command line, and what is said of what may not."""

from __future__ import annotations

import shutil
import warnings

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import runner
from onnxpress.optimizer import Calibration, OnnxpressError, Override, Recipe, UsageError, optimize
from onnxpress.optimizer.conversion import gate
from onnxpress.optimizer.sparsity import allocate
from rewrites import run

SMALL = Recipe(scheme="int8")


def saved(path):
    ir.save(graphs.matmul_model(64, 64), path)
    return path


def test_a_model_of_onnx_is_changed_in_place():
    proto = ir.to_proto(graphs.matmul_model(64, 64))
    feeds = {"x": np.ones((2, 64), np.float32)}
    (want,) = run(proto.SerializeToString(), feeds)
    assert optimize(proto, SMALL).rewritten == {"MatMul": 1}
    assert [node.op_type for node in proto.graph.node] == ["MatMulNBits"]
    np.testing.assert_allclose(run(proto.SerializeToString(), feeds)[0], want, atol=0.05 * np.abs(want).max())


def test_a_model_of_onnx_stays_where_nothing_is_done():
    proto = ir.to_proto(graphs.matmul_model(64, 64))
    before = proto.SerializeToString()
    with pytest.raises(OnnxpressError, match='include pattern "nosuch" matches no node with a weight'):
        optimize(proto, Recipe(include=("nosuch",)))
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("other", [3, None, onnx.GraphProto()])
def test_what_is_no_model(other):
    with pytest.raises(UsageError, match=r"give a path, a name, an onnx\.ModelProto or an onnx_ir\.Model"):
        optimize(other)


@pytest.mark.parametrize(
    ("kind", "key", "meant"), [(Recipe, "schem", "scheme"), (Override, "mach", "match"), (Calibration, "dta", "data")]
)
def test_settings_that_there_are_not(kind, key, meant):
    with pytest.raises(UsageError, match=f'{kind.__name__} has no setting "{key}"; did you mean "{meant}"'):
        kind(**{key: 1})


def test_messages_speak_of_settings_as_they_are_written(tmp_path, monkeypatch, capsys):
    path = saved(tmp_path / "m.onnx")
    with pytest.raises(UsageError) as told:
        optimize(path, Recipe(scheme="int8-static"))
    assert "give calibration (" in str(told.value)
    assert "--" not in str(told.value)
    code, _, err = runner(monkeypatch, capsys)("optimize", str(path), "--scheme", "int8-static")
    assert code == 2
    assert "give --calibration (" in err


def test_a_drop_of_all_is_no_bound(tmp_path, monkeypatch, capsys):
    with pytest.raises(UsageError, match="max_drop"):
        Recipe(scheme="int8-static", max_drop=1.0)
    code, _, err = runner(monkeypatch, capsys)("optimize", str(saved(tmp_path / "m.onnx")), "--max-drop", "1")
    assert (code, "write a share above 0 and below 1" in err) == (2, True)


def test_a_folder_holds_what_was_made_of_its_model(tmp_path):
    saved(tmp_path / "m.onnx")
    for scheme in ("int8", "int4"):
        assert optimize(tmp_path, Recipe(scheme=scheme)).output == str(tmp_path / f"m.{scheme}.onnx")
    shutil.copy(tmp_path / "m.onnx", tmp_path / "other.onnx")
    with pytest.raises(OnnxpressError, match=r"holds several models, name one of m\.onnx, other\.onnx$"):
        optimize(tmp_path)


def test_sizes_of_the_check(tmp_path, monkeypatch, capsys):
    b = graphs.Builder()
    x = b.op("Reshape", b.input("x", ["n", 8]), b.constant("shape", np.array([-1, 64])))
    b.output(b.op("MatMul", x, b.constant("W", graphs.weight(64, 64))), [None, 64])
    ir.save(b.model(), tmp_path / "m.onnx")
    assert optimize(tmp_path / "m.onnx", SMALL, dims={"n": 16}).details["check"]["run_on"] == "random inputs"
    assert optimize(tmp_path / "m.onnx", SMALL).details["check"]["run_on"] is None
    with pytest.raises(UsageError, match="dim k: no input has a size of this name"):
        optimize(tmp_path / "m.onnx", SMALL, dims={"k": 16})
    run, options = runner(monkeypatch, capsys), [str(tmp_path / "m.onnx"), "--dim", "n=16"]
    code, out, _ = run("optimize", *options)
    assert (code, "by a run on random inputs" in out) == (0, True)
    monkeypatch.setattr(gate, "MOST_WEIGHTS", 1000)
    for given, how in ((["--no-check"], "switched off"), ([], "16.4 KB of weights: --check makes it")):
        code, _, err = run("optimize", *options, *given)
        assert (code, err.splitlines()[-1].startswith("error: --dim: sizes of the run that checks the model")) == (
            2,
            True,
        )
        assert err.strip().endswith(how)
    assert run("optimize", *options, "--check")[0] == 0
    np.savez(tmp_path / "d.npz", x=np.zeros((16, 8), np.float32))
    data = ["--scheme", "int8-static", "--calibration", str(tmp_path / "d.npz")]
    code, _, err = run("optimize", *options, *data)
    assert (code, err.splitlines()[-1]) == (
        2, "error: --dim: the check runs on the calibration data, which has sizes of its own",
    )  # fmt: skip


def test_scores_of_layers_that_give_nothing_do_not_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = allocate(
            {"a": np.ones((2, 2)), "b": np.full((2, 2), 1e9)}, {"a": 1.0, "b": 1 / np.finfo(float).tiny}, 0.5
        )
    assert kept["b"].all()
    assert not kept["a"].any()
