"""Names that `inspect --nodes` lists work as patterns, whatever characters they hold and wherever the nodes are."""

from __future__ import annotations

import json

import graphs
import onnx_ir as ir
import pytest
from command_line import runner
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.settings.recipe import Override

AWKWARD = ["head/MatMul[0]", "head/MatMul0", "what?", "what!", "st*r", "star", "[!a]", "a b", "[[]"]


def product(b, x, name, weight):
    return b.op("MatMul", x, b.constant(weight, graphs.weight(64, 64)), name=name)


def model():
    """Products of awkward names, two in a branch, and one in a branch of a branch."""
    b = graphs.Builder()
    x, c = b.input("x", ["m", 64]), b.input("c", [], ir.DataType.BOOL)

    def branch(name, inner=None):
        own = graphs.Builder()
        y = product(own, x, name, f"W_{name}")
        if inner is not None:
            y = own.op("If", c, name="again", then_branch=inner, else_branch=branch("other"))
            y.name = f"again_{name}"
        own.output(y, ["m", 64])
        return own.graph

    y = b.op("If", c, name="choose", then_branch=branch("one"), else_branch=branch("two", branch("deep")))
    for index, name in enumerate(AWKWARD):
        y = product(b, y, name, f"W{index}")
    b.output(y, ["m", 64])
    return b.model()


@pytest.fixture
def path(tmp_path):
    ir.save(model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def listed(path, monkeypatch, capsys):
    """Names of the products as the command lists them."""
    _, out, _ = runner(monkeypatch, capsys)("inspect", str(path), "--nodes", "--json")
    names = [name for name, _, _ in json.loads(out)["taken"]]
    assert {*AWKWARD, "choose/one", "choose/again/deep", "choose/again/other"} <= set(names)
    return names


def unmatched(report):
    return [line.split(" matches no node")[0] for line in report.warnings if "matches no node" in line]


@pytest.mark.parametrize("scheme", ["int4", "int8-dynamic", "fp8"])
def test_each_listed_name_means_its_node_alone(path, listed, scheme):
    for name in listed:
        report = optimize(path, Recipe(scheme=scheme, exclude=(name,)))
        assert unmatched(report) == []
        assert report.left == {"MatMul: excluded by the recipe": 1}
        report = optimize(path, Recipe(scheme=scheme, include=(name,)))
        assert report.rewritten == {"MatMul": 1}
        assert unmatched(report) == []
        assert report.recipe["include"] == [name]
        report = optimize(path, Recipe(scheme=scheme, overrides=(Override(match=name, keep_float=True),)))
        assert report.left == {"MatMul: kept in float by an override of the recipe": 1}


def test_nodes_of_two_branches_are_listed_apart():
    b = graphs.Builder()
    x, branches = b.input("x", ["m", 64]), []
    for name in ("V", "W"):
        own = graphs.Builder()
        own.output(product(own, x, "mm", name), ["m", 64])
        branches.append(own.graph)
    y = b.op("If", b.input("c", [], ir.DataType.BOOL), name="if", then_branch=branches[0], else_branch=branches[1])
    b.output(y, ["m", 64])
    report = optimize(b.model().clone(), Recipe(scheme="int8", exclude=("if/mm",)))
    assert report.left == {"MatMul: excluded by the recipe": 1}
    assert report.weights == () or report.worst[0].nodes == ("mm_1",)  # the only one of that name


def test_in_recipes_and_on_the_command_line(path, listed, monkeypatch, capsys, tmp_path):
    run = runner(monkeypatch, capsys)
    for name in ("head/MatMul[0]", "choose/again/deep"):
        (tmp_path / "r.toml").write_text(f"exclude = [{json.dumps(name)}]\n")
        for words in (["--exclude", name], ["--recipe", str(tmp_path / "r.toml")]):
            code, out, err = run("optimize", str(path), *words, "--json")
            assert code == 0, err
            assert json.loads(out)["left"] == {"MatMul: excluded by the recipe": 1}


def test_globs_are_globs_where_they_are_no_names(path):
    assert optimize(path, Recipe(exclude=("head/*",))).left == {"MatMul: excluded by the recipe": 2}
    assert optimize(path, Recipe(exclude=("head/MatMul[0-9]",))).left == {"MatMul: excluded by the recipe": 1}
    assert optimize(path, Recipe(exclude=("choose/again/*",))).left == {"MatMul: excluded by the recipe": 2}
    report = optimize(path, Recipe(exclude=("head[1]", "choose/none")))
    assert unmatched(report) == ['exclude pattern "head[1]"', 'exclude pattern "choose/none"']
