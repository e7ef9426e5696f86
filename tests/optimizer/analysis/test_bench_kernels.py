"""Kernels side by side: what is computed from the times, and what is refused."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from onnxpress.custom_ops import _kernels
from onnxpress.optimizer.analysis import bench_kernels as kernels
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.runtime.kernel_case import OPS, Case
from onnxpress.optimizer.runtime.kernel_models import model
from typer.testing import CliRunner

CASES = [Case(M, 64, 48, 4, 32) for M in (1, 3)]


@pytest.fixture
def quick(monkeypatch):
    """Two seconds for stock, one for ours; 1000 operations and 100 bytes a second at most."""

    class Probe:
        bytes = 400

        def __init__(self, threads):
            pass

        def dot_rate(self):
            return 1000.0

        def read(self):
            pass

    counted = []

    def take_turns(runs, rounds):
        counted.append((len(runs), rounds))
        for run in runs:
            run()
        return [[2.0], [1.0], [4.0]]

    monkeypatch.setattr(kernels, "take_turns", take_turns)
    monkeypatch.setattr(kernels, "Probe", Probe)
    return counted


def test_figures(quick):
    result = kernels.bench_kernels(CASES, threads=1, rounds=4)
    assert quick == [(3, 4), (3, 4)]
    for case, timing in zip(CASES, result.timings, strict=True):
        operations = 2 * case.M * 64 * 48
        assert timing.ratio == 2
        assert timing.gops == operations / 1e9
        assert timing.peak_share == operations / 1000
        assert timing.read_share == 48 * (32 + 2 * 4) / 100  # codes, and two float32 scales a column


def test_cold_weights_are_many_that_all_differ(quick):
    weight = 48 * (32 + 2 * 4)
    built = model(CASES[0], 3, 4, False)
    names = [f"scales{i}".encode() for i in range(3)]
    assert all(name in built for name in names)
    assert b"scales3" not in built
    result = kernels.bench_kernels(CASES[:1], threads=1, cold=3 * weight)
    assert result.timings[0].ours == 1 / 3


@pytest.mark.parametrize("op", OPS)
def test_every_op(quick, op):
    case = Case(3, 64, 48, 8, 32 if op == "matmul_nbits" else 0, op)
    (timing,) = kernels.bench_kernels([case], threads=1).timings
    assert timing.case == case
    assert timing.read_share == 48 * (64 + 4 * (2 if case.block_size else 1)) / 100


@pytest.mark.parametrize(("format", "bits"), [("e2m3", 6), ("nf4", 4)])
def test_minifloats_beside_float32(quick, format, bits):
    """ONNX Runtime has fewer nodes, of as many bytes."""
    case = Case(3, 64, 48, bits, 32, "minifloat", format)
    (timing,) = kernels.bench_kernels([case], threads=1, cold=2 * 4 * 64 * 48).timings
    weight = 48 * 2 * (4 * bits + 2)
    assert timing.stock == 2.0 / 2
    assert timing.ours == 1.0 / -(-2 * 4 * 64 * 48 // weight)
    with pytest.raises(UsageError, match="has 6"):
        Case(3, 64, 48, 8, 32, "minifloat", "e2m3")


def test_results_that_differ_are_not_timed():
    want, got = np.ones((2, 3)), np.ones((2, 3))
    kernels._compare(CASES[0], [want], [got])
    for wrong in (1.2, np.nan):
        got[0, 0] = wrong
        with pytest.raises(OnnxpressError, match="the results differ"):
            kernels._compare(CASES[0], [want], [got])


@pytest.mark.parametrize(("bits", "block_size"), [(3, 32), (4, 24), (4, 8)])
def test_sizes_that_do_not_exist(bits, block_size):
    with pytest.raises(UsageError):
        Case(1, 64, 48, bits, block_size)


@pytest.mark.parametrize("isa", _kernels.supported_isas())
def test_limits_are_those_of_a_machine(isa):
    """Between what any and what no CPU does: a loop that the compiler removed shows."""
    assert 1e8 < _kernels.dot_rate(0.02, isa=isa) < 1e13
    memory = np.ones(1 << 26, np.uint8)
    start = time.perf_counter()
    _kernels.read(memory, isa=isa)
    assert 1e8 < memory.nbytes / (time.perf_counter() - start) < 1e12


def test_command(quick, tmp_path):
    from onnxpress.optimizer.commands.app import app

    plot = tmp_path / "plot.png"
    call = ["bench-kernels", "--shape", "64x48", "-m", "1", "-m", "2", "--asymmetric", "--plot", str(plot)]
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    assert [timing["case"]["M"] for timing in json.loads(done.stdout)["timings"]] == [1, 2]
    assert plot.stat().st_size > 10_000
    assert "M < 16: geometric mean 2.00x" in CliRunner().invoke(app, call).stdout


def test_unknown_op():
    from onnxpress.optimizer.commands.app import app

    done = CliRunner().invoke(app, ["bench-kernels", "--op", "conv"])
    assert isinstance(done.exception, UsageError)


@pytest.mark.parametrize("shape", ["64", "64x", "ax48", "0x48", "64x48x2"])
def test_wrong_shapes(shape):
    from onnxpress.optimizer.commands.app import app

    done = CliRunner().invoke(app, ["bench-kernels", "--shape", shape])
    assert isinstance(done.exception, UsageError)
