from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import pytest
from onnxpress.models.torch_checkpoint import read_state_dict
from onnxpress.optimizer.errors import OnnxpressError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DATA = np.arange(6, dtype=np.float32)


class Call:
    """Pickles as a call of a name, whatever it is here."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.name, self.arguments = name, arguments


class Name:
    def __init__(self, name: str) -> None:
        self.name = name


class Storage:
    def __init__(self, *pid: object) -> None:
        self.pid = pid


class Writer(pickle._Pickler):  # the one in C does not let a subclass write names that cannot be imported
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Name):
            module, _, name = obj.name.rpartition(".")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        elif isinstance(obj, Call):
            self.save(Name(obj.name))
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def storage(count: int = 6, kind: str = "torch.FloatStorage", view: object = None) -> Storage:
    return Storage("storage", Name(kind), "7", "cpu", count, view)


def tensor(offset=0, shape=(2, 3), strides=(3, 1), **more) -> Call:
    return Call("torch._utils._rebuild_tensor_v2", storage(**more), offset, shape, strides, False, OrderedDict())


def save(path, obj, data: bytes = DATA.tobytes(), count: int = 6, magic: int = MAGIC):
    with open(path, "wb") as file:
        for part in (magic, PROTOCOL, {"little_endian": True}, obj, ["7"]):
            Writer(file, 2).dump(part)
        file.write(np.int64(count).tobytes() + data)
    return path


def test_tensors_come_back_by_name(tmp_path):
    found = read_state_dict(
        save(tmp_path / "w.pth", OrderedDict(a=tensor(), b=tensor(4, (2,), (1,)), c=tensor(5, (), ())))
    )
    assert list(found) == ["a", "b", "c"]
    assert found["a"].dtype == np.float32
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"].tolist() == [4, 5]
    assert found["c"].tolist() == 5


def test_transposed_view(tmp_path):
    found = read_state_dict(save(tmp_path / "w.pth", {"a": tensor(0, (3, 2), (1, 3))}))
    assert found["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_integers(tmp_path):
    one = {"a": tensor(0, (), (), count=1, kind="torch.LongStorage")}
    found = read_state_dict(save(tmp_path / "w.pth", one, np.int64(9).tobytes(), 1))
    assert found["a"].dtype == np.int64
    assert found["a"] == 9


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch._utils._rebuild_parameter", "collections.Counter"]
)
def test_no_other_name_is_called(tmp_path, name):
    path = save(tmp_path / "w.pth", {"a": Call(name, f"touch {tmp_path}/ran")})
    with pytest.raises(OnnxpressError, match=f"w.pth: asks for {name}, which is no part .* not run"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tensor(1), "does not lie in its storage '7'"),
        (tensor(0, (2, 3), (3, 2)), "does not lie in its storage '7'"),
        (tensor(0, (1 << 40,), (0,)), "does not lie in its storage '7'"),
        (tensor(-1), "makes no sense"),
        (tensor(5, (2, 2), (-1, -1)), "makes no sense"),
        (tensor(0, (6,), (1, 1)), "makes no sense"),
        (tensor(kind="torch.HalfStorage"), "asks for torch.HalfStorage"),
        (tensor(view=("8", 0, 6)), "other than whole storages"),
        ([1, 2], "not a dictionary of tensors"),
        (Call("torch.FloatStorage"), "not a PyTorch checkpoint"),
    ],
)
def test_what_is_no_dense_tensor_is_refused(tmp_path, wrong, message):
    with pytest.raises(OnnxpressError, match=message):
        read_state_dict(save(tmp_path / "w.pth", {"a": wrong}))


def test_every_truncation_is_an_error(tmp_path):
    whole = save(tmp_path / "w.pth", {"a": tensor()}).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(OnnxpressError, match=r"cut\.pth"):
            read_state_dict(cut)


def test_other_files(tmp_path):
    with pytest.raises(OnnxpressError, match="does not begin with the magic number"):
        read_state_dict(save(tmp_path / "w.pth", {}, magic=1))
    with pytest.raises(OnnxpressError, match="storage '7' has 5 numbers, not 6"):
        read_state_dict(save(tmp_path / "w.pth", {"a": tensor()}, count=5))
    (tmp_path / "zip.pth").write_bytes(b"PK\3\4")
    with pytest.raises(OnnxpressError, match=r"layout of PyTorch 1\.6"):
        read_state_dict(tmp_path / "zip.pth")
