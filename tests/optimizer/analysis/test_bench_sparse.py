"""Block-sparse products beside others: that all compute the same, and what is made of the times."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime as ort
import pytest
from onnxpress.custom_ops import reference, register
from onnxpress.optimizer.analysis import bench_sparse
from onnxpress.optimizer.analysis.sparse_case import DTYPES, SparseCase
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.runtime import sparse_cost, sparse_models, sparse_runs
from onnxpress.optimizer.sparsity import Block
from sessions import options
from typer.testing import CliRunner


@pytest.fixture
def quick(monkeypatch):
    """A second more for each one after the first."""

    def take_turns(runs, rounds):
        for run in runs:
            run()
        return [[1.0 + index] * rounds for index in range(len(runs))]

    monkeypatch.setattr(bench_sparse, "take_turns", take_turns)
    monkeypatch.setattr(sparse_cost, "take_turns", take_turns)


@pytest.mark.parametrize("block", ["4x4", "4x1", "1x16", "3x5"])
def test_random_weights(block):
    weight = sparse_models.random_weight(96, 80, Block.parse(block), 0.75)
    stored = sparse_models.compress(weight, Block.parse(block))
    total = np.prod(Block.parse(block).grid((96, 80)))
    assert abs(len(stored.values) / total - 0.25) < 0.01
    back = reference.decode_blocks(stored.values, stored.indices, stored.offsets, 96, 80)
    np.testing.assert_array_equal(back, weight)


def test_models_compute_the_product():
    weight = sparse_models.random_weight(64, 48, Block(4, 4), 0.5)
    stored = sparse_models.compress(weight, Block(4, 4))
    A = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    want = A @ weight.astype(np.float32)
    chosen = options()
    register(chosen)

    def error(model, scale=1.0):
        (got,) = ort.InferenceSession(model, chosen).run(None, {"A": A})
        return np.linalg.norm(got - want * scale) / np.linalg.norm(want * scale)

    assert error(sparse_models.sparse_model(stored, 64, 48), 0.01) < 0.02
    assert error(sparse_models.int8_model(weight), 0.01) < 0.02
    assert error(sparse_models.float_model(weight.astype(np.float32))) < 1e-5
    stored = sparse_models.compress(weight.astype(np.float32), Block(4, 4))
    assert error(sparse_models.sparse_model(stored, 64, 48)) < 1e-5


def test_models_of_codes_compute_the_same():
    weight = sparse_models.random_weight(64, 48, Block(4, 4), 0.5)
    stored = sparse_models.compress(weight, Block(4, 4))
    codes = sparse_runs.codes_of(np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32))
    chosen = options()
    register(chosen)
    models = sparse_models.sparse_model(stored, 64, 48, codes=True), sparse_models.qlinear_model(weight)
    ours, stock = (ort.InferenceSession(model, chosen).run(None, {"A": codes})[0].astype(int) for model in models)
    assert np.abs(ours - stock).max() <= 1  # of their factors, one rounds once more
    assert ours.std() > 8
    sums = (codes.astype(int) - sparse_models.MIDDLE) @ weight.astype(int)
    want = sums * sparse_models.A_SCALE * sparse_models.W_SCALE / sparse_models.y_scale(64) + sparse_models.MIDDLE
    assert np.abs(np.clip(want, 0, 255) - ours).max() < 0.51


def test_peers_that_are_installed_compute_the_product():
    weight = sparse_models.random_weight(64, 48, Block(4, 4), 0.5)
    A = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    want = A @ weight.astype(np.float32)
    for name, runs in sparse_runs.peers(weight, Block(4, 4), A, 1).items():
        for run in runs if not name.endswith("int8") else []:
            np.testing.assert_allclose(run().T, want, rtol=1e-4, atol=1e-2)


def test_figures(quick):
    case = SparseCase(3, 64, 48, Block(4, 4), 0.75)
    (timing,) = bench_sparse.bench_sparse([case], threads=1).timings
    assert timing.case == case
    assert timing.ours == 1
    assert timing.ratio("ORT float32") == 2
    assert timing.ratio("our dense int8") == 3
    case = SparseCase(3, 64, 48, Block(4, 4), 0.75, "uint8")
    (timing,) = bench_sparse.bench_sparse([case], threads=1).timings
    assert timing.ratio("ORT int8") == 4


def test_cost(quick):
    weight = sparse_models.random_weight(64, 48, Block(4, 1), 0.75)
    cost = sparse_cost.measure(weight, Block(4, 1), 3, threads=1)
    assert (cost.sparse, cost.float32, cost.int8, cost.dense) == (1, 2, 3, 2)
    cost = sparse_cost.measure(weight.astype(np.float32) / 7, Block(4, 1), 3, threads=1)
    assert (cost.sparse, cost.float32, cost.int8, cost.dense) == (1, 2, None, 2)


def test_command(quick):
    from onnxpress.optimizer.commands.app import app

    call = ["bench-sparse", "--shape", "64x48", "-m", "1", "-m", "9", "--block", "4x1", "--sparsity", "0.5"]
    for dtype in DTYPES:
        done = CliRunner().invoke(app, [*call, "--dtype", dtype, "--json"])
        assert done.exit_code == 0, done.output
        assert [timing["case"]["M"] for timing in json.loads(done.stdout)["timings"]] == [1, 9]
    assert "50%" in CliRunner().invoke(app, call).stdout


@pytest.mark.parametrize(
    "wrong", [["--sparsity", "1"], ["--sparsity", "-0.1"], ["--block", "4"], ["--block", "0x4"], ["--dtype", "int4"]]
)
def test_wrong_options(wrong):
    from onnxpress.optimizer.commands.app import app

    done = CliRunner().invoke(app, ["bench-sparse", "--shape", "64x48", *wrong])
    assert isinstance(done.exception, UsageError)
