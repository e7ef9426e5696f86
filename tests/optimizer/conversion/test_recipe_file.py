"""Recipes that are saved, and make the same model again."""

from __future__ import annotations

import functools
import json

import command_line
import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Override, Recipe
from onnxpress.optimizer.conversion.recipe_file import check_recipe_file, write_recipe
from onnxpress.optimizer.errors import UsageError

call = functools.partial(command_line.call, entry="optimize_main")


@pytest.fixture
def model(tmp_path):
    b = graphs.Builder(18)
    h = b.input("x", [None, 64])
    for index in range(2):
        h = b.op("MatMul", h, b.constant(f"W{index}", graphs.weight(64, 64, index)), name=f'layer"{index}"\\é')
    b.output(h, [None, 64])
    ir.save(b.model(), tmp_path / "model.onnx")
    rows = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    return tmp_path / "model.onnx"


def test_any_names(tmp_path):
    """Quotes, backslashes, control characters, brackets and what is not ASCII."""
    names = ['a"b', "a\\b", "a\nb\t\x7f\x01", "[x]*", "é✓", ""]
    recipe = Recipe(
        scheme="int3", exclude=tuple(names), max_drop=0.01,
        overrides=(*(Override(match=name, scheme="int8") for name in names), Override(op_type="Gemm", keep_float=True)),
    )  # fmt: skip
    write_recipe(recipe.to_mapping(), tmp_path / "r.toml")
    assert Recipe.from_toml(tmp_path / "r.toml") == recipe
    assert not list(tmp_path.glob("*.part"))


def test_it_makes_the_same_model(model):
    folder = model.parent
    data = "--calibration", "rows.npz"
    done = call("model.onnx", "--budget", "4.5bits", *data, "-o", "a.onnx", "--save-recipe", "r.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    again = call("model.onnx", "--recipe", "r.toml", *data, "-o", "b.onnx", "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert json.loads(again.stdout)["recipe"]["overrides"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("r.json", "a name that ends in .toml"), ("no/r.toml", "the folder no does not exist"), ("d.toml", "is a folder")],
)
def test_where_none_can_be_written(model, name, reason):
    (model.parent / "d.toml").mkdir()
    done = call("model.onnx", "--save-recipe", name, cwd=model.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert sorted(each.name for each in model.parent.iterdir()) == ["d.toml", "model.onnx", "rows.npz"]


def test_a_file_that_is_read(tmp_path):
    (tmp_path / "mask.toml").write_text("")
    with pytest.raises(UsageError, match="is read itself"):
        check_recipe_file(tmp_path / "mask.toml", [None, tmp_path / "mask.toml"])
