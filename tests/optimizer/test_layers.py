"""Packages of the optimizer import what is below them alone, so that nothing depends on itself."""

from __future__ import annotations

import ast
from pathlib import Path

from onnxpress import models, optimizer

LAYERS = (
    "errors", "user_functions", ("quantization", "sparsity"), "settings", "model_io", "runtime", "graph", "planning",
    "passes", "models", "sources", "calibration", "evaluation", "gradients", "families", "conversion", "__init__",
    "analysis", "commands", "cli", "package",
)  # fmt: skip
"""From the bottom up; `models` is onnxpress.models, which the catalogue's names come from."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in ([names] if isinstance(names, str) else names)}
ROOTS = {"optimizer": Path(optimizer.__file__).parent, "models": Path(models.__file__).parent}


def imported(file: Path, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The modules, or names in them, of onnxpress that a file of a package imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {(*module, alias.name) for alias in node.names}
    return {names for names in found if names[0] == "onnxpress" and len(names) > 1}


def layer(names: tuple[str, ...]) -> str | None:
    """That of onnxpress.optimizer.LAYER.*, of onnxpress.models.* and of names of onnxpress.optimizer itself."""
    _, root, *rest = names
    if root == "optimizer":
        return rest[0] if rest and rest[0] in RANK else "__init__"
    return "models" if root == "models" else None


def test_imports_point_one_way():
    up = []
    for root, folder in ROOTS.items():
        for file in folder.rglob("*.py"):
            inside = ("onnxpress", root, *file.relative_to(folder).with_suffix("").parts)
            own = layer(inside)
            assert own is not None, f"{file}: in none of the layers"
            for names in imported(file, inside[:-1]):
                other = layer(names)
                if other is not None and RANK[other] > RANK[own]:
                    up.append(f"{'.'.join(inside)} imports {'.'.join(names)}")
    assert not up, "\n".join(up)


def test_every_module_has_a_layer():
    names = {
        path.stem for path in ROOTS["optimizer"].iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert names == RANK.keys() - {"models"}


def test_the_lowest_know_neither_onnx_nor_its_runtime():
    for package in ("quantization", "sparsity"):
        for file in (ROOTS["optimizer"] / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not {name.split(".")[0] for name in names} & {"onnx", "onnx_ir", "onnxscript", "onnxruntime"}
