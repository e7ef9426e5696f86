"""Commands that write models."""

from __future__ import annotations

from typing import Annotated

import typer

from .terminal import Json, Quiet, console, progress_bar


def optimize(
    model: Annotated[str, typer.Argument(help="A file, a folder of an exported model, or a catalogue name.")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="File to write.")] = None,
    scheme: Annotated[str | None, typer.Option(help="int2, int3, int4 (default), int5, int6 or int8.")] = None,
    recipe: Annotated[str | None, typer.Option(help="TOML file; options given here override it.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Weights that share a scale: 16 to 256.")] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric/--asymmetric", help="One fixed zero point, or one a block.")
    ] = None,
    search: Annotated[bool | None, typer.Option("--search/--no-search", help="Search the best scales.")] = None,
    scale_type: Annotated[str | None, typer.Option(help="float32 or float16.")] = None,
    form: Annotated[str | None, typer.Option(help="qoperator (default), qdq or onnxpress.")] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(help="4: activations rounded to int8 (default); 3: to bfloat16; 0 or 1: float32.")
    ] = None,
    embeddings: Annotated[
        bool | None, typer.Option("--embeddings/--no-embeddings", help="Quantize large Gather tables too.")
    ] = None,
    clean_up: Annotated[bool | None, typer.Option("--clean-up/--no-clean-up", help="Fold and fuse first.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only nodes whose name matches; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not nodes whose name matches; repeatable.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a model to low-bit weights."""
    from ..pipeline import optimize as run
    from ..recipe import Recipe

    values = Recipe.from_toml(recipe).to_mapping() if recipe else {}
    given = {
        "scheme": scheme, "block_size": block_size, "symmetric": symmetric, "search": search,
        "scale_type": scale_type, "form": form, "accuracy_level": accuracy_level, "embeddings": embeddings,
        "clean_up": clean_up, "include": include or None, "exclude": exclude or None,
    }  # fmt: skip
    values.update({key: value for key, value in given.items() if value is not None})
    chosen = Recipe.from_mapping(values, "command line")
    with progress_bar(quiet or json_) as progress:
        report = run(model, chosen, output, progress=progress)
    if json_:
        print(report.to_json())
    elif not quiet:
        report.print(console())


def compile(  # noqa: A001
    model: Annotated[str, typer.Argument(help="A file, a folder of an exported model, or a catalogue name.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File to write; NAME.ctx.onnx by default.")
    ] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(help="4: activations rounded to int8; 0 or 1: float32; the nodes' own by default.")
    ] = None,
    claim: Annotated[str | None, typer.Option(help="Families of nodes to take, with commas; all by default.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack the weights of a low-bit model for the execution provider once, so that sessions map them."""
    from ..context import compile_context as run

    report = run(model, output, accuracy_level=accuracy_level, claim=claim)
    if json_:
        print(report.to_json())
    elif not quiet:
        report.print(console())


def export(
    model: Annotated[str, typer.Argument(help="Folder in Hugging Face's layout, or a name on the hub.")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="Folder to write; NAME-onnx by default.")] = None,
    task: Annotated[str, typer.Option(help="As optimum names it, such as feature-extraction.")] = "auto",
    opset: Annotated[int | None, typer.Option(help="Opset of the export.")] = None,
) -> None:
    """Export a PyTorch model to ONNX through optimum."""
    from onnxpress.models.export import export as run

    print(run(model, output, task=task, opset=opset))
