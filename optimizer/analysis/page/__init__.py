"""The report of a conversion as a page: one file that loads nothing, for any browser, with or without scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ...errors import OnnxpressError, UsageError
from ...model_io.storage import check_target, write_whole
from ...planning.report import Report
from .markup import element, to_html
from .sections import body

_BEGINNING = "<!doctype html>"


def check_page(path: str | Path, read: Iterable[object] = ()) -> Path:
    """The path of a page, when one can be written there.

    Args:
        path: The page.
        read: Paths of what is read or written beside it; others than paths are passed over.

    Raises:
        UsageError: As `check_target`, or its name does not end in .html, or a file that is no page is there: it may be
            anything, such as the weights of the model.
    """
    path, read = Path(path), list(read)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: a page is written; give it a name that ends in .html")
    check_target(path, read)
    if any(_is_at(path, Path(other)) for other in read if isinstance(other, str | Path)):
        raise UsageError(f"{path}: is another file of the conversion already; name another page")
    if path.exists():
        try:
            with open(path, "rb") as file:
                begins = file.read(len(_BEGINNING))
        except OSError as error:
            raise UsageError(f"{path}: cannot read what is there: {error.strerror}; name another page") from error
        if begins.lower() != _BEGINNING.encode():
            raise UsageError(f"{path}: is there already and is no page; name another one")
    return path


def write_page(report: Report, path: str | Path) -> None:
    """Write a report as a page, whole or not at all.

    Args:
        report: What `optimize` gives back.
        path: The file, whose name ends in .html.

    Raises:
        UsageError: As `check_page`, with the report's models as what is read.
        OnnxpressError: It cannot be written.
    """
    path = check_page(path, [report.source, report.output])
    try:
        write_whole(path, page(report).encode())
    except OnnxpressError as error:
        done = f"; {report.output} is written" if report.output is not None else ""
        raise OnnxpressError(f"{error}{done}") from error


def page(report: Report) -> str:
    """The page, the same for the same report.

    Names in a model are of who made it, so everything is a text in a tree until that is written as HTML; and the page
    forbids its reader all scripts but its own, and all that is not in it.
    """
    style, script = (resources.files(__package__).joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{Path(report.source).name}: {report.recipe.get('scheme', 'conversion')}"),
        element("style", style),
    )
    whole = element("html", head, element("body", *body(report), element("script", script)), lang="en")
    return f"{_BEGINNING}\n{to_html(whole)}\n"


def _is_at(path: Path, other: Path) -> bool:
    """Whether two files, which need not be there yet, have one place."""
    return path.name == other.name and other.parent.is_dir() and path.parent.samefile(other.parent)


def _digest(text: str) -> str:
    """How a content security policy names a script or a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
