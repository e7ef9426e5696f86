"""The page of a conversion: what it tells, what it never lets a model say, and how it is written."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import html.parser
import json
import math
import os

import command_line
import graphs
import numpy as np
import onnx_ir as ir
import onnxpress
import pytest
from onnxpress.optimizer import Calibration, OnnxpressError, Recipe, UsageError, optimize
from onnxpress.optimizer.analysis.page import check_page, page, write_page
from onnxpress.optimizer.analysis.page.layers import layers_of
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.planning.report import Attempt, NodeReport, Report, WeightReport

VOID = {"meta", "link", "img", "input", "br", "hr"}
SCHEMES = (
    "int4", "int3", "int8", "nf4", "mxfp4", "bfp4", "fp8", "int8-dynamic", "fp8-dynamic", "int8-static", "fp8-static",
    "sparse",
)  # fmt: skip
EVIL = "</script><img src=x onerror=alert(1)>\"'&amp;\u202e\x00]]>{{7*7}}"


class Page(html.parser.HTMLParser):
    """A page that was read: it fails where tags do not fit into each other."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.tables, self.titles, self.whole = [], [], [], [], {"script": "", "style": ""}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "title":
            self.titles.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text
        if self.open and self.open[-1] == "title":
            self.titles[-1] += text
        if self.open and self.open[-1] in self.whole:
            self.whole[self.open[-1]] += text

    def table(self, first):
        """Rows by header of the table whose first header that is."""
        ((head, *rows),) = (table for table in self.tables if table[0][0] == first)
        return [dict(zip(head, row, strict=True)) for row in rows]


def model(names=("first", "second", "third", "product")):
    b = graphs.Builder()
    x = b.input("x", ["m", 64])
    W = b.constant("W", graphs.weight(64, 64))
    y = b.op("MatMul", x, W, name=names[0])
    y = b.op("MatMul", y, W, name=names[1])
    y = b.op("MatMul", y, b.constant("V", graphs.weight(64, 64, 1)), name=names[2])
    y = b.op("MatMul", y, b.op("Transpose", y, perm=[1, 0]), name=names[3])
    b.output(y, ["m", "m"])
    return b.model()


def converted(scheme, made=None, output=None, **settings):
    data = [{"x": np.random.default_rng(index).standard_normal((8, 64)).astype(np.float32)} for index in range(4)]
    recipe = Recipe(scheme=scheme, **settings)
    needs = scheme.endswith("-static")
    return optimize(made or model(), recipe, output, calibration=Calibration(data) if needs else None)


def test_a_page_is_whole_and_loads_nothing():
    text = page(converted("int8-static"))
    read = Page(text)
    for tag, attributes in read.tags:
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
        assert not {"src", "srcset", "action", "style"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for _, attributes in read.tags if "href" in attributes} <= set(ids)
    for word in ("http:", "https:", "//", "@import", "url("):
        assert word not in text.replace("// ", "")
    policy = next(each["content"] for _, each in read.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(read.whole[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_node_with_its_weight(scheme, tmp_path):
    made = None
    if scheme == "sparse":  # which takes no weight that nodes share
        b = graphs.Builder()
        y = b.op("MatMul", b.input("x", ["m", 64]), b.constant("W", graphs.weight(64, 64)), name="first")
        b.output(b.op("MatMul", y, b.constant("V", graphs.weight(64, 64, 1)), name="third"), ["m", 64])
        made = b.model()
    path = tmp_path / "model.onnx"
    report = converted(scheme, made, path)
    rows = {row["Node"]: row for row in Page(page(report)).table("Node")}
    assert list(rows) == [node.name for node in report.nodes]
    taken = {node.name: node for node in report.nodes if node.taken}
    assert {"first", "third"} <= taken.keys()
    for name, node in taken.items():
        if not node.parameters:
            continue
        assert rows[name]["Before"] == "16.4 KB"
        assert rows[name]["Weights"] == "4,096"
        assert float(rows[name]["SQNR"].removesuffix(" dB")) > 0
        assert rows[name]["Method"] in ("rtn", "gptq", "magnitude")
    if made:
        assert rows["first"]["Note"].endswith(" % zero")
    else:
        left = [row["Note"] for row in rows.values() if row["Became"] == "left"]
        assert left == [node.reason for node in report.nodes if not node.taken]
        if scheme != "int8-static":  # which rounds for each reader by what that reads
            assert rows["first"]["Note"] == rows["second"]["Note"] == "shares its weight with 1 more"
    stored, loaded = sum(weight.stored for weight in report.weights), storage.load(path)
    names = [value for value in storage.initializers(loaded) if not (value.name or "").startswith("x")]
    whole = sum(value.const_value.nbytes for value in names)
    assert 0 <= whole - stored <= (400 if scheme.endswith(("-static", "-dynamic")) else 0)


def test_nodes_of_inner_graphs_and_functions_go_by_the_names_of_recipes(tmp_path):
    inner = graphs.Builder()
    outer = graphs.Builder()
    x = outer.input("x", ["m", 64])
    W = inner.constant("W", graphs.weight(64, 64))
    y = inner.op("MatMul", x, W, name="inside")
    inner.output(y, ["m", 64])
    other = graphs.Builder()
    other.output(other.op("Identity", x, name="same"), ["m", 64])
    choice = outer.input("choice", [], ir.DataType.BOOL)
    z = outer.op("If", choice, name="choose", then_branch=inner.model().graph, else_branch=other.model().graph)
    outer.output(z, ["m", 64])
    report = converted("int4", outer.model())
    (layer,) = layers_of(report)
    assert (layer.node.name, layer.node.taken) == ("inside", True)
    assert layer.weight is report.weights[0]


def test_method_and_stored_bytes():
    report = converted("int4")
    assert [weight.method for weight in report.weights] == ["rtn", "rtn"]
    assert [weight.stored for weight in report.weights] == [64 * 64 // 2 + 64 * 2 * 4 + 64 * 2 // 2] * 2
    assert {weight.method for weight in converted("int8-static").weights} == {"gptq"}
    assert {weight.method for weight in converted("int8-static", method="rtn").weights} == {"rtn"}


def test_damage_to_products_where_data_tells_it():
    data = [{"x": np.random.default_rng(index).standard_normal((64, 64)).astype(np.float32)} for index in range(4)]
    report = optimize(model(), Recipe(scheme="int3"), calibration=Calibration(data))
    rows = {row["Node"]: row for row in Page(page(report)).table("Node")}
    for weight in report.weights:
        costs = report.details["rounded"][weight.name]
        wanted = f"{10 * math.log10(costs['energy'] / costs['cost']):.1f} dB"
        assert {rows[node]["Product's SQNR"] for node in weight.nodes} == {wanted}
        assert {rows[node]["Method"] for node in weight.nodes} == {costs["method"]}
    assert "Product's SQNR" not in Page(page(converted("int3"))).table("Node")[0]


def test_what_a_model_says_stays_a_text(tmp_path):
    names = tuple(f"{EVIL}{index}" for index in range(4))
    report = converted("int8-static", model(names))
    report = dataclasses.replace(report, source=EVIL, output=EVIL, warnings=(EVIL,), rows=((EVIL, EVIL),))
    read = Page(page(report))
    shown = EVIL.replace("\u202e", "\ufffd").replace("\x00", "\ufffd")
    assert sorted(row["Node"] for row in read.table("Node"))[:3] == [f"{shown}{index}" for index in range(3)]
    assert all(tag not in ("img", "b") for tag, _ in read.tags)
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert page(report).count("</script>") == 1
    lone = dataclasses.replace(report, source="a\ud800b")
    assert "a\ufffdb" in page(lone)
    write_page(dataclasses.replace(lone, output=None), tmp_path / "page.html")


def test_tables_tell_what_they_are_without_scripts():
    read = Page(page(converted("int8-static")))
    heads = [each for tag, each in read.tags if tag == "th"]
    assert {each["scope"] for each in heads} == {"col", "row"}
    assert sum(tag == "caption" for tag, _ in read.tags) == len(read.tables) >= 3
    assert ("html", {"lang": "en"}) in read.tags
    drawings = [each for tag, each in read.tags if tag == "svg" and "aria-hidden" not in each]
    assert drawings
    assert all(each["aria-label"] for each in drawings)


def test_plots_have_a_mark_a_layer():
    report = converted("int4")
    read = Page(page(report))
    links = [each["href"] for tag, each in read.tags if tag == "a"]
    taken = [index for index, node in enumerate(report.nodes) if node.taken]
    assert links == [f"#layer-{index}" for index in taken] * 3
    titles = [title for title in read.titles if title.startswith("first: ")]
    assert len(titles) == 3
    assert all("16.4 KB -> 2.6 KB" in title for title in titles)


def test_numbers_that_are_none():
    weights = tuple(
        WeightReport(f"w{index}", (f"n{index}",), "int4", 10, sqnr, math.nan, "rtn", 0)
        for index, sqnr in enumerate((math.inf, -math.inf, math.nan, 0.0))
    )
    nodes = tuple(NodeReport(f"n{index}", "MatMul", True, "int4", 10, 40) for index in range(4))
    outputs = [
        {"name": "y", "sqnr": math.nan, "channel": None, "channel_sqnr": None, "drowned": 0.0, "equal": None,
         "shapes": None},
        {"name": "z", "sqnr": None, "channel": None, "channel_sqnr": None, "drowned": 0.0, "equal": None,
         "shapes": ((1, 2), ())},
    ]  # fmt: skip
    check = {"check": {"outputs": outputs, "run_on": "noise"}}
    report = Report(
        "a", None, {}, {}, {}, {}, weights, 0.0, 0, 0, {}, 0, details=check, nodes=nodes,
        trail=(Attempt("all", "reading", math.nan, False), Attempt("none", "reading", -math.inf, True)),
    )  # fmt: skip
    read = Page(page(report))
    assert [row["SQNR"] for row in read.table("Node")] == ["exact", "nothing left", "NaN", "0.0 dB"]
    assert [row["Value"] for row in read.table("No.")] == ["NaN", "-inf"]
    assert [row["SQNR"] for row in read.table("Output")] == ["NaN", ""]
    keys = {each["data-key"] for _, each in read.tags if "data-key" in each}
    assert {"Infinity", "-Infinity", "0.0"} <= keys
    assert not {"nan", "inf", "-inf"} & keys
    assert Page(page(Report("a", None, {}, {}, {}, {}, (), 0.0, 0, 0, {}, 0))).tables == []


def test_trials_are_told_and_drawn():
    report = converted("int8-static", max_drop=1e-9)
    recipes = [attempt.recipe for attempt in report.trail]
    assert recipes[0] == "none of the steps"
    assert "with gptq" in recipes
    mixtures = report.trail[recipes.index("float32") :]
    assert mixtures[1].recipe == "all rounded"
    assert mixtures[1].size < mixtures[0].size
    judged = [attempt for attempt in mixtures[1:] if attempt.metric == mixtures[0].metric]
    search = report.details["mixed_precision"]["trials"]
    assert [(each.value, each.accepted) for each in judged] == [(each["value"], each["accepted"]) for each in search]
    assert all(attempt.seconds > 0 for attempt in judged)
    read = Page(page(report))
    assert [row["Recipe"] for row in read.table("No.")] == recipes
    assert set(recipes) <= {title.rpartition(": ")[0] for title in read.titles}
    assert json.loads(report.to_json())["trail"][0]["recipe"] == "none of the steps"
    assert json.loads(report.to_json())["nodes"][0] == dataclasses.asdict(report.nodes[0])
    assert converted("int4").trail == ()


def test_the_same_report_gives_the_same_page(tmp_path):
    report = converted("int4", output=tmp_path / "out.onnx")
    write_page(report, tmp_path / "page.html")
    write_page(report, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == page(report).encode()
    assert onnxpress.write_page is write_page


def test_places_that_are_refused(tmp_path):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "weights.html").write_bytes(b"\x00" * 100)
    (tmp_path / "page.html").write_text("<!DOCTYPE html><p>of before</p>")
    (tmp_path / "link").symlink_to(tmp_path)
    os.link(tmp_path / "page.html", tmp_path / "other.html")
    for name, read, problem in (
        ("page.txt", [], "ends in .html"),
        ("no/page.html", [], "does not exist"),
        ("folder.html", [], "is a folder"),
        ("weights.html", [], "is no page"),
        ("page.html", ["other.html"], "is read itself"),
        ("new.html", ["new.html"], "another file of the conversion"),
        ("new.html", ["link/new.html"], "another file of the conversion"),
    ):
        with pytest.raises(UsageError, match=problem):
            check_page(tmp_path / name, [tmp_path / each for each in read])
    assert check_page(tmp_path / "page.html", [None, "lines.txt"]) == tmp_path / "page.html"


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    report = converted("int4", output=tmp_path / "out.onnx")
    path = tmp_path / "page.html"
    write_page(report, path)
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OnnxpressError, match=r"No space left on device; the old file is untouched; .*out\.onnx is w"):
        write_page(dataclasses.replace(report, warnings=("another",)), path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "page.html"]


call = functools.partial(command_line.call, entry="optimize_main")


def test_the_option(tmp_path):
    ir.save(model(), tmp_path / "model.onnx")
    done = call("model.onnx", "--report", "page.html", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    read = Page((tmp_path / "page.html").read_text("utf-8"))
    assert [row["Node"] for row in read.table("Node")] == [node["name"] for node in told["nodes"]]
    assert sorted(os.listdir(tmp_path)) == ["model.int4.onnx", "model.onnx", "page.html"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--report", "no/page.html"], "no/page.html: the folder no does not exist"),
        (["--report", "model.onnx"], "model.onnx: a page is written"),
        (["--report", "copy.html"], "copy.html: is there already and is no page"),
        (["--report", "out.html", "-o", "out.html"], "out.html: is another file of the conversion already"),
    ],
)
def test_a_wrong_place_is_told_before_the_work(options, problem, tmp_path):
    ir.save(model(), tmp_path / "model.onnx")
    (tmp_path / "copy.html").write_bytes((tmp_path / "model.onnx").read_bytes())
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    done = call("model.onnx", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {problem}")
    assert done.stderr.count("\n") == 1
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
