"""Recipes written to files, to be read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..model_io.target import check_target

_SUFFIX = ".toml"


def check_recipe_file(path: str | Path, read: Iterable[object] = ()) -> Path:
    """The path of a recipe file, when one can be written there.

    Args:
        path: The file.
        read: Paths of what is read; others than paths are passed over.

    Raises:
        UsageError: As `check_target`, or its name does not end in .toml.
    """
    path = Path(path)
    if path.suffix.lower() != _SUFFIX:
        raise UsageError(f"{path}: a recipe is written; give it a name that ends in {_SUFFIX}")
    return check_target(path, read)


def write_recipe(values: Mapping[str, Any], path: str | Path) -> None:
    """Write the values of a recipe as TOML, whole or not at all.

    Args:
        values: As `Recipe.to_mapping` and `Report.recipe` have them.
        path: The file.

    Raises:
        OnnxpressError: It cannot be written.
    """
    import tomli_w

    from ..model_io.storage import write_whole  # slow to import for who only checks

    write_whole(Path(path), tomli_w.dumps(dict(values)).encode())
