"""What the documents say of the code: files, links, options, tables."""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from pathlib import Path

import onnxpress
import pytest
from onnxpress.custom_ops import _kernels
from onnxpress.optimizer.commands import app
from onnxpress.optimizer.quantization.schemes import SCHEMES
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="a source distribution has no scripts")
DOCUMENTS = tuple(
    sorted(
        str(path.relative_to(ROOT))
        for folder, pattern in (("", "*.md"), *((f, "**/*.md") for f in ("optimizer", "custom_ops", "ep", "models")))
        for path in (ROOT / folder).glob(pattern)
    )
)
OF_OTHERS = frozenset(
    {"--head", "--help", "--build", "--defined-only", "--minutes", "--seed", "--jobs", "--case", "--group-size"}
    | {"--ratio", "--all-layers", "--sym"}
)
"""Of every command, and options of CMake, nm, Ray, tests/differential/run.py and optimum-cli."""
PLACEHOLDERS = re.compile(r"NAME|ISA|\*|module:|my_")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code_of(document: str) -> list[str]:
    """Blocks and spans of code."""
    text = text_of(document)
    blocks = re.findall(r"(?:^ {4}.*\n(?:\n(?= {4}))?)+", text, re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^ {4}.*\n", "\n", text, flags=re.MULTILINE))
    return [*blocks, *spans]


def anchors(path: Path) -> set[str]:
    """Those that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_documents_are_all_there():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md", "optimizer/README.md"} <= {*DOCUMENTS}
    assert {"optimizer/quantization/README.md", "ep/README.md", "custom_ops/README.md"} <= {*DOCUMENTS}


def test_the_front_page_is_short_and_has_the_two_commands():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150
    assert "pip install . && optimize minilm --scheme int4" in text
    assert 'pip install ".[test]" && pytest' in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / document).parent / file if file else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    named = {
        word
        for code in code_of(document)
        for word in re.findall(r"(?<![\w./-])(?:optimizer|custom_ops|ep|models|tests|\.ci)/[\w./*-]+", code)
        if not PLACEHOLDERS.search(word)
    }
    assert not [word for word in named if not (ROOT / word.rstrip(".")).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_that_are_named_are_options(document):
    commands = get_command(app.app).commands.values()
    parameters = [parameter for command in commands for parameter in command.params]
    known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
    named = {option for code in code_of(document) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)}
    assert not named - known - OF_OTHERS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_that_are_named_are_commands(document):
    lines = [line for code in code_of(document) for line in code.splitlines()]
    named = {found[1] for line in lines if (found := re.match(r"\s*onnxpress ([a-z-]+)", line))}
    assert not named - set(get_command(app.app).commands)


def test_every_scheme_is_explained():
    explained = {span for document in DOCUMENTS for span in code_of(document)} | {"int5", "int3", "int2"}
    assert not SCHEMES.keys() - explained - {"fp6-e2m3"}


@pytest.mark.parametrize("file", ["custom_ops/README.md", "ep/README.md", "ep/__init__.py"])
def test_every_instruction_set_is_listed(file):
    assert not [isa for isa in _kernels.all_isas() if not re.search(rf"\b{isa}\b", text_of(file))]


def test_the_recipe_of_the_documents_is_one(tmp_path):
    blocks = [textwrap.dedent(code) for code in code_of("optimizer/README.md") if "[[overrides]]" in code]
    assert len(blocks) == 1
    (tmp_path / "recipe.toml").write_text(blocks[0])
    recipe = onnxpress.Recipe.from_toml(tmp_path / "recipe.toml")
    assert [override.match for override in recipe.overrides] == ["/encoder/layer.5/*", "/encoder/layer.0/*"]


@pytest.mark.parametrize("document", ["README.md", "optimizer/README.md"])
def test_the_python_of_the_documents_names_what_is_there(document):
    blocks = [textwrap.dedent(code) for code in code_of(document) if "import onnxpress" in code]
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "onnxpress":
                assert node.attr in onnxpress.__all__


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / ".ci" / "tables.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_tables_are_those_of_the_code_and_of_the_figures(tables):
    made = tables.parts(tables.read(ROOT))
    for document in tables.DOCUMENTS:
        text = text_of(document)
        assert tables.replaced(text, made) == text, f"{document}: run python .ci/tables.py"


def test_every_table_stands_somewhere(tables):
    texts = "".join(map(text_of, tables.DOCUMENTS))
    assert [name for name in tables.parts(tables.read(ROOT)) if f"<!-- {name} -->" not in texts] == []


def test_a_table_that_is_out_of_step_is_replaced(tables):
    text = "before\n<!-- one -->\nold\n<!-- /one -->\nbehind\n"
    assert tables.replaced(text, {"one": "new"}) == text.replace("old", "new")
    with pytest.raises(KeyError):
        tables.replaced(text, {})


def test_the_plot_has_the_figures(tables):
    drawn = (ROOT / tables.PLOT).read_text(encoding="utf-8")
    for name, times in tables.bars(tables.read(ROOT)):
        assert f">{name}<" in drawn
        assert f">{times}<" in drawn
