"""Statistics in files: everything comes back, and nothing hostile gets in."""

from __future__ import annotations

import io
import json
import math
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxpress.optimizer.calibration.statistics import Statistics, StatisticsSpec, TensorStatistics
from onnxpress.optimizer.errors import OnnxpressError, UsageError


def observed(wanted, *batches) -> TensorStatistics:
    tensor = TensorStatistics(wanted)
    for batch in batches:
        tensor.update(batch)
    return tensor


def statistics() -> Statistics:
    g = np.random.default_rng(0)
    x = g.standard_normal((50, 6)).astype(np.float32)
    return Statistics("model", {
        "all/of:it": observed(StatisticsSpec(True, -1, True), x, 3 * x),
        "little": observed(StatisticsSpec(False), x),
        "nan": observed(StatisticsSpec(True, 1), np.array([[1, np.nan]], np.float32)),
        "never": TensorStatistics(StatisticsSpec(True, 0, True)),
    })  # fmt: skip


def test_everything_comes_back(tmp_path):
    path = tmp_path / "s.npz"
    before = statistics()
    before.save(path)
    after = Statistics.load(path)
    assert after.model == "model"
    assert list(after) == list(before)
    for name, old in before.items():
        new = after[name]
        for key in ("wanted", "count", "low", "high", "moving_low", "moving_high", "batches", "finite", "rows"):
            assert getattr(new, key) == getattr(old, key), key
        assert (new.histogram is None) == (old.histogram is None)
        if old.histogram is not None:
            assert (new.histogram.exponent, new.histogram.zeros) == (old.histogram.exponent, old.histogram.zeros)
            np.testing.assert_array_equal(new.histogram.counts, old.histogram.counts)
        for key in ("channel_absmax", "channel_mean", "channel_std", "gram"):
            np.testing.assert_array_equal(getattr(new, key), getattr(old, key))
    merged = after.merge(before)
    assert merged["all/of:it"].count == 2 * before["all/of:it"].count
    assert not merged["nan"].finite
    assert merged["never"].low == math.inf


def test_saving_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "s.npz"
    statistics().save(path)
    first = path.read_bytes()
    statistics().save(path)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]
    with pytest.raises(UsageError, match="does not exist"):
        statistics().save(tmp_path / "gone" / "s.npz")


def rewritten(path, change_header=lambda _header: None, change_arrays=lambda _arrays: None):
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header"].tobytes())
    change_header(header)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    change_arrays(arrays)
    np.savez(path, **arrays)


def set_tensor(**values):
    return lambda header: header["tensors"][0].update(values)


def set_array(key, array):
    return lambda arrays: arrays.update({key: array})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(version=2), "it is of version 2, this is for version 1"),
        (lambda header: header.update(model=3), "it names no model"),
        (lambda header: header.update(tensors={}), "it lists no tensors"),
        (lambda header: header["tensors"].append(3), "tensor 4 has no name"),
        (lambda header: header["tensors"].append(header["tensors"][0]), "'all/of:it' is there twice"),
        (set_tensor(count=-1), "count is -1"),
        (set_tensor(count=True), "count is True"),
        (set_tensor(count=2**70), "count is"),
        (set_tensor(count=599), "does not add up to its count"),
        (set_tensor(batches=0), "contradict each other"),
        (set_tensor(zeros=600), "more zeros than its bin holds"),
        (set_tensor(exponent=500), "the exponent 500"),
        (set_tensor(exponent="3"), "the exponent '3'"),
        (set_tensor(low="nan"), "its range is not finite"),
        (set_tensor(low="0x1p+20"), "wrong way round"),
        (set_tensor(low=3), "damaged one"),
        (set_tensor(finite=1), "finite is no truth value"),
        (set_tensor(wanted=[True, "x", True]), "its axis is no number"),
        (set_tensor(wanted=None), "does not say what is kept"),
    ],
)
def test_hostile_headers(tmp_path, change, message):
    path = tmp_path / "s.npz"
    statistics().save(path)
    rewritten(path, change)
    with pytest.raises(OnnxpressError, match=f"not a file of statistics, or a damaged one: .*{message}|{message}"):
        Statistics.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("0.histogram"), "damaged one"),
        (set_array("0.histogram", np.zeros(5, np.int64)), "impossible counts"),
        (set_array("0.histogram", np.full(8192, -1)), "impossible counts"),
        (set_array("0.histogram", np.zeros(8192)), "is float64 of rank 1"),
        (set_array("0.histogram", np.array([{}], object)), "damaged one"),
        (set_array("0.channels", np.zeros((2, 6))), "wrong shape of channels"),
        (set_array("0.channels", np.full((3, 6), np.nan)), "impossible sums"),
        (set_array("0.channels", np.full((3, 6), -1.0)), "impossible sums"),
        (set_array("0.gram", np.zeros((6, 5))), "not square"),
        (set_array("0.gram", np.full((6, 6), np.inf)), "not finite"),
        (set_array("header", np.frombuffer(b"[1]", np.uint8)), "its header is no mapping"),
        (set_array("header", np.frombuffer(b"{", np.uint8)), "damaged one"),
    ],
)
def test_hostile_arrays(tmp_path, change, message):
    path = tmp_path / "s.npz"
    statistics().save(path)
    rewritten(path, change_arrays=change)
    with pytest.raises(OnnxpressError, match=message):
        Statistics.load(path)


def test_other_files(tmp_path):
    path = tmp_path / "s.npz"
    with pytest.raises(OnnxpressError, match="no such file"):
        Statistics.load(path)
    with pytest.raises(OnnxpressError, match="damaged one"):
        Statistics.load(tmp_path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(OnnxpressError, match=r"s\.npz: holds no statistics but arrays \(x\).*calibration"):
        Statistics.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'shape': (99999999999999,), }")
    with pytest.raises(OnnxpressError, match="not a file of statistics"):
        Statistics.load(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_bytes_changed_anywhere(tmp_path, place, noise):
    buffer = io.BytesIO()
    path = tmp_path / "s.npz"
    if not path.exists():
        statistics().save(path)
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place : place + len(noise)] = noise
    buffer.write(data)
    changed = tmp_path / "changed.npz"
    changed.write_bytes(buffer.getvalue())
    try:
        Statistics.load(changed)
    except OnnxpressError:
        return
