"""Calibration data: every source gives the same samples, and what does not fit is named."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from onnxpress.optimizer.calibration.data import open_data
from onnxpress.optimizer.calibration.inputs import Input
from onnxpress.optimizer.errors import OnnxpressError, UsageError

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
ONE = [Input("x", F32, ("batch", 3, None))]
TWO = [Input("ids", I64, ("batch", 4)), Input("scale", F32, ())]


def arrays(count=5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 6)).astype(np.float32)


def check_samples(data, expected=None):
    """The batches hold the expected samples, twice over."""
    expected = arrays() if expected is None else expected
    for _ in range(2):
        found = [feeds["x"] for feeds in data]
        np.testing.assert_array_equal(np.concatenate(found), expected)
    return [len(part) for part in found]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rank", [3, 4])
def test_npz(tmp_path, save, order, rank):
    x = arrays() if rank == 3 else arrays()[:, np.newaxis]
    save(tmp_path / "d.npz", x=np.asarray(x, order=order))
    assert check_samples(open_data(tmp_path / "d.npz", ONE)) == [1] * 5
    assert check_samples(open_data(str(tmp_path / "d.npz"), ONE, batch=2)) == [2, 2, 1]
    assert check_samples(open_data(tmp_path / "d.npz", ONE, samples=3, batch=2), arrays()[:3]) == [2, 1]


def test_npz_of_several_inputs(tmp_path):
    ids = np.arange(20).reshape(5, 4)
    np.savez(tmp_path / "d.npz", scale=np.float32(2.5), ids=ids)
    found = list(open_data(tmp_path / "d.npz", TWO, batch=2))
    np.testing.assert_array_equal(np.concatenate([feeds["ids"] for feeds in found]), ids)
    assert [float(feeds["scale"]) for feeds in found] == [2.5] * 3
    np.savez(tmp_path / "d.npz", scale=np.arange(5, dtype=np.float32), ids=ids)
    assert [float(feeds["scale"]) for feeds in open_data(tmp_path / "d.npz", TWO)] == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="'scale': samples 0 and 1 differ; use a batch of 1"):
        list(open_data(tmp_path / "d.npz", TWO, batch=2))


def test_defaults_count_where_nothing_else_is_given(tmp_path):
    inputs = [*ONE, Input("scale", F32, (), has_default=True)]
    x, two = arrays(), np.float32(2)
    check_samples(open_data(list(x[:, np.newaxis]), inputs))
    given = [{"x": each[np.newaxis]} for each in x]
    found = list(open_data([given[0], {**given[1], "scale": two}, *given[2:]], inputs))
    assert [float(feeds.get("scale", 1)) for feeds in found] == [1, 2, 1, 1, 1]
    np.savez(tmp_path / "d.npz", x=x, scale=two)
    assert [float(feeds["scale"]) for feeds in open_data(tmp_path / "d.npz", inputs, batch=2)] == [2] * 3
    np.savez(tmp_path / "d.npz", x=x)
    check_samples(open_data(tmp_path / "d.npz", inputs, batch=2))
    np.save(tmp_path / "x.npy", x)
    check_samples(open_data(tmp_path / "x.npy", inputs))
    with pytest.raises(UsageError, match="'scale', which has a default, differs in samples 0 to 1; use a batch of 1"):
        list(open_data([given[0], {**given[1], "scale": two}], inputs, batch=2))
    with pytest.raises(UsageError, match="'y' is no input of the model, which takes x, scale"):
        list(open_data([{**given[0], "y": two}], inputs))


def test_a_fixed_batch_of_one(tmp_path):
    fixed = [Input("x", F32, (1, 3, 6))]
    np.savez(tmp_path / "d.npz", x=arrays())
    assert check_samples(open_data(tmp_path / "d.npz", fixed)) == [1] * 5
    with pytest.raises(UsageError, match="leading size is fixed at 1; use a batch of 1"):
        list(open_data(tmp_path / "d.npz", fixed, batch=2))


def test_npy_and_folders(tmp_path):
    np.save(tmp_path / "all.npy", arrays())
    check_samples(open_data(tmp_path / "all.npy", ONE))
    for kind in ("npy", "npz"):
        folder = tmp_path / kind
        folder.mkdir()
        for index, part in enumerate(np.array_split(arrays(), 3)):
            if kind == "npy":
                np.save(folder / f"{index}.npy", part)
            else:
                np.savez(folder / f"{index}.npz", x=part)
        check_samples(open_data(folder, ONE))
        with pytest.raises(UsageError, match=r"several inputs \(ids, scale\)|lacks the model's input 'ids'"):
            list(open_data(folder, TWO))
    named = tmp_path / "named"
    named.mkdir()
    np.save(named / "ids.npy", np.arange(8).reshape(2, 4))
    np.save(named / "scale.npy", np.float32(1))
    assert [feeds["ids"].tolist() for feeds in open_data(named, TWO)] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]


def test_objects():
    x = arrays()
    samples = [{"x": one[np.newaxis]} for one in x]
    assert open_data(samples, ONE).samples == 5
    for source in (samples, [one[np.newaxis] for one in x], lambda: iter(samples), iter(samples)):
        check_samples(open_data(source, ONE))

    def endless():
        while True:
            yield samples[0]

    assert len(list(open_data(endless(), ONE, samples=3))) == 3


def test_what_hands_out_samples_by_number_alone():
    """As data sets of PyTorch do, with numbers beyond their end refused in any way."""
    x = arrays()

    class Dataset:
        def __len__(self):
            return len(x)

        def __getitem__(self, index):
            assert index < len(x)
            return {"x": x[index][np.newaxis]}

    for source in (Dataset(), Dataset):
        check_samples(open_data(source, ONE))
    assert len(list(open_data(Dataset(), ONE, samples=2))) == 2


def generated():
    yield from (array[None] for array in arrays())


def test_what_can_be_gone_through_only_once():
    """Read into memory where that can be known, and else told to be used up."""
    once = generated()
    assert check_samples(open_data(lambda: once, ONE)) == [1] * 5
    with pytest.raises(UsageError, match="returned an iterator that is used up or has nothing to give"):
        list(open_data(lambda: once, ONE))
    with pytest.raises(UsageError, match="the iterator is used up, or has nothing to give; make a new one"):
        open_data(once, ONE)
    once = generated()
    assert len(list(open_data(lambda: once, ONE, samples=2))) == 2
    assert len(list(once)) == 3


def test_what_hides_that_it_can_be_gone_through_only_once():
    class Hidden:
        left = generated()

        def __iter__(self):
            return self.left

    once = generated()
    for source in (Hidden(), lambda: map(np.copy, once)):
        data = open_data(source, ONE)
        assert len(list(data)) == 5
        with pytest.raises(UsageError, match="gave 5 samples and, when asked for them again, none; what can be gone"):
            list(data)


def test_module_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_samples.py").write_text(
        "import numpy as np\n"
        "def given():\n    for i in range(3):\n        yield {'x': np.full((1, 3, 2), i, np.float32)}\n"
        "def broken():\n    yield from given()\n    raise KeyError('gone')\n"
        "def nothing():\n    return None\n"
        "number = 3\n"
    )
    expected = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((1, 3, 2), np.float32)
    check_samples(open_data("own_samples:given", ONE), expected)
    for reference, message in (
        ("own_samples:gone", "own_samples has no gone"),
        ("own_samples:number", "is a int, not a function"),
        ("no_such_module:f", "cannot import no_such_module: ModuleNotFoundError"),
    ):
        with pytest.raises(UsageError, match=message):
            open_data(reference, ONE)
    with pytest.raises(OnnxpressError, match="own_samples:broken: failed: KeyError: 'gone'"):
        list(open_data("own_samples:broken", ONE))
    with pytest.raises(UsageError, match="own_samples:nothing: returned a NoneType"):
        list(open_data("own_samples:nothing", ONE))
    (tmp_path / "bad_module.py").write_text("1 / 0")
    with pytest.raises(UsageError, match="cannot import bad_module: ZeroDivisionError: division by zero"):
        open_data("bad_module:f", ONE)


GOOD = {"x": np.zeros((1, 3, 2), np.float32)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "lacks input 'x'; it has nothing"),
        ({"y": GOOD["x"]}, "lacks input 'x'; it has y"),
        ({**GOOD, "y": GOOD["x"]}, "'y' is no input of the model, which takes x"),
        ({"x": GOOD["x"].astype(np.int64)}, "input 'x': is int64, the model takes float32"),
        ({"x": np.full((1, 3, 2), 1e39)}, "input 'x': holds NaN or infinity as float32"),
        (
            {"x": GOOD["x"][0]},
            r"input 'x': has shape \[3, 2\], the model takes \['batch', 3, None\]; samples lie along",
        ),
        ({"x": np.zeros((1, 4, 2), np.float32)}, r"input 'x': has shape \[1, 4, 2\]"),
        ({"x": np.full((1, 3, 2), np.nan, np.float32)}, "input 'x': holds NaN or infinity"),
        ({"x": np.full((1, 3, 2), np.inf, np.float32)}, "input 'x': holds NaN or infinity"),
        (None, "input 'x': is object"),
        ((GOOD["x"],), "is a tuple; give a dict of arrays by input: x"),
    ],
)
def test_samples_that_do_not_fit(bad, message):
    with pytest.raises(UsageError, match=f"calibration data: sample 1: {message}"):
        list(open_data([GOOD, bad], ONE))


@pytest.mark.parametrize("given", [np.float16, np.float64])
@pytest.mark.parametrize("wanted", [np.float16, np.float32, np.float64])
def test_floats_of_another_width_are_converted(given, wanted):
    x = arrays().astype(np.float16).astype(given)
    (feeds,) = open_data([{"x": x}], [Input("x", np.dtype(wanted), ("batch", 3, None))])
    assert feeds["x"].dtype == wanted
    np.testing.assert_array_equal(feeds["x"], x)


def test_samples_that_make_no_batch():
    data = open_data([GOOD, {"x": np.zeros((1, 3, 5), np.float32)}], ONE, batch=2)
    with pytest.raises(UsageError, match=r"'x': samples 0 and 1 have the shapes \[1, 3, 2\] and \[1, 3, 5\]"):
        list(data)


def test_nothing(tmp_path):
    np.savez(tmp_path / "empty.npz", x=arrays()[:0])
    (tmp_path / "folder").mkdir()
    for source in ([], list, tmp_path / "empty.npz"):
        with pytest.raises(UsageError, match="holds no samples; a calibration needs some"):
            list(open_data(source, ONE))
    with pytest.raises(UsageError, match=r"holds no samples: no \.npz or \.npy file"):
        open_data(tmp_path / "folder", ONE)


def test_wrong_sources(tmp_path):
    (tmp_path / "lines.md").write_text("hello")
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "pictures" / "a" / "1.JPG").write_bytes(b"")
    for source, kind, message in (
        (tmp_path / "gone", OnnxpressError, "no such file or folder"),
        (tmp_path / "lines.md", UsageError, "give an .npz"),
        (tmp_path / "pictures", UsageError, "holds images; say with images"),
        (3, UsageError, "is a int"),
        (GOOD, UsageError, "is a dict"),
    ):
        with pytest.raises(kind, match=message):
            open_data(source, ONE)
    for options in ({"samples": 0}, {"batch": 0}, {"length": 0}):
        with pytest.raises(UsageError, match="must be"):
            open_data([GOOD], ONE, **options)


def test_damaged_files(tmp_path):
    def refused(message, path, kind=OnnxpressError):
        with pytest.raises(kind, match=message):
            list(open_data(path, ONE))

    path = tmp_path / "d.npz"
    path.write_bytes(b"no archive")
    refused(r"not a readable \.npz file", path)
    np.savez(path, x=arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    refused(r"not a readable \.npz file", path)
    path.write_bytes(whole[:200] + bytes(40) + whole[240:])
    refused("damaged", path)
    np.savez(path, x=np.array([{}, {}], object))
    refused("Python objects", path)
    np.savez(path, y=arrays())
    refused("lacks the model's input 'x'; it holds y", path, UsageError)
    np.savez(path, x=arrays(), y=arrays())
    refused("'y' is no input", path, UsageError)
    np.savez(path, x=arrays()[:, 0])
    refused(r"sample 0: input 'x': has shape \[5, 6\]", path, UsageError)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"text")
    refused("not a readable array", path)
    np.save(tmp_path / "d.npy", arrays())
    (tmp_path / "d.npy").write_bytes((tmp_path / "d.npy").read_bytes()[:-4])
    refused(r"is cut off: .* do not hold an array of shape \[5, 3, 6\]", tmp_path / "d.npy")
    huge = (tmp_path / "d.npy").read_bytes().replace(b"(5, 3, 6)", b"(9999999, 3, 999999)"[:9])
    (tmp_path / "d.npy").write_bytes(huge)
    refused("not a readable array|cut off", tmp_path / "d.npy")
    np.savez(path, ids=np.zeros((3, 4), np.int64), scale=np.zeros(2, np.float32))
    with pytest.raises(UsageError, match="different numbers of samples: 'ids' 3, 'scale' 2"):
        list(open_data(path, TWO))


@pytest.mark.parametrize(
    ("samples", "doubt"),
    [
        (
            [{"ids": [[0] * 4], "scale": 1.0}, {"ids": [[1] * 4], "scale": 1.0}],
            "input 'scale' is 1 everywhere in all 2",
        ),
        ([{"ids": [[0] * 4], "scale": 1.0}], "input 'scale' is 1 everywhere in all 1 samples"),
        ([{"ids": [[0] * 4], "scale": 1.0}, {"ids": [[0] * 4], "scale": 2.0}], None),  # whole numbers may be the same
        ([{"ids": [[0] * 4]}] * 3, "all 3 samples are the same"),
        ([{"ids": [[0] * 4]}, {"ids": [[1] * 4]}, {"ids": [[0] * 4]}], None),
        ([{"ids": [[0] * 4]}], None),
    ],
)
def test_what_never_changes_is_told_after_a_pass(samples, doubt):
    samples = [
        {k: np.asarray(v, np.int64 if k == "ids" else np.float32) for k, v in sample.items()} for sample in samples
    ]
    data = open_data(samples, TWO[: len(samples[0])])
    assert data.doubts == []
    for _ in range(2):
        list(data)
        assert len(data.doubts) == (doubt is not None)
        assert all(text.startswith(doubt) for text in data.doubts)
