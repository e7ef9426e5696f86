"""Commands that write models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..calibration import Calibration
from ..conversion.request import check_request
from ..errors import UsageError
from ..model_io.target import check_other, check_target
from ..settings.origin import Origin
from ..settings.recipe import Recipe
from ..sources import check_there, resolve
from .setting_options import options_of
from .terminal import Dims, Json, Quiet, Ray, as_written, console, kept_in, note_written, progress_bar, sizes

_DATA = "Data of static schemes, sparse and weights alone"


@options_of()
def optimize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A file, a folder of an exported model, or a catalogue name.")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="File to write.")] = None,
    recipe: Annotated[str | None, typer.Option(help="TOML file; options given here override it.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help=".npz, a folder of .npy or images, text, or module:function.", rich_help_panel=_DATA),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples to take of it; 128.", rich_help_panel=_DATA)
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples a run; 1.", rich_help_panel=_DATA)] = None,
    images: Annotated[
        str | None, typer.Option(help="How images become inputs: a name, or a TOML file.", rich_help_panel=_DATA)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="tokenizer.json for text; by default that beside the model.", rich_help_panel=_DATA),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of each sample of text; 128 of an encoder's lines, 512 of a decoder's windows.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Folder from which the same conversion goes on after an interruption: of weights alone, and where "
            "lengths are searched.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            help="What `onnxpress calibrate` wrote, in place of data; --gram for sparse.", rich_help_panel=_DATA
        ),
    ] = None,
    dim: Dims = None,
    ray: Ray = None,
    json_: Json = False,
    report: Annotated[
        str | None, typer.Option(help="Page to write (.html): what became of each layer, and why, with plots.")
    ] = None,
    save_recipe: Annotated[
        str | None,
        typer.Option(help="TOML file to write: all settings, with what was found, which make the same model again."),
    ] = None,
    genai: Annotated[
        str | None,
        typer.Option(help="Folder to write for onnxruntime-genai: the model, its tokenizer and genai_config.json."),
    ] = None,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell what each pass over floats left, too.")
    ] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Convert a model to low-bit or sparse forms."""
    learnt: dict[str, Any] = {
        "data": calibration, "statistics": statistics, "samples": samples, "batch": batch, "images": images,
        "tokenizer": tokenizer, "length": length, "checkpoint": checkpoint,
    }  # fmt: skip
    options = as_written(context, {**settings, **learnt, "ray": ray}) | {"data": "--calibration"}
    origin = Origin(recipe or "recipe", options)
    chosen = Recipe.from_toml(recipe, settings, options) if recipe else Recipe.from_mapping(settings, origin)
    if output is not None:
        check_target(output, [recipe])
        check_other(output, model)
    dims = sizes(dim)
    check_there(model)
    given = Calibration(**learnt)
    with origin.stated():
        check_request(chosen, given, None if Path(model).exists() else model, ray)
    folder = None
    if genai is not None:
        from ..conversion.genai_folder import genai_folder

        if output is not None:
            raise UsageError("--output beside --genai, which writes model.onnx into its folder; leave one out")
        with origin.stated():
            folder = genai_folder(genai, resolve(model))
        output = str(folder.model)
    if report is not None:
        from ..analysis.page import check_page, write_page

        check_page(report, [model, output, recipe, chosen.mask, *learnt.values()])
    if save_recipe is not None:
        from ..conversion.recipe_file import check_recipe_file, write_recipe

        check_recipe_file(save_recipe, [model, output, chosen.mask, *learnt.values()])

    from ..conversion.pipeline import optimize as run

    try:
        with kept_in(checkpoint), progress_bar(quiet or json_) as progress, origin.stated():
            done = run(model, chosen, output, calibration=given, dims=dims, ray=ray, progress=progress)
    finally:
        if folder is not None:
            folder.discard()
    note_written(done.output)
    if folder is not None:
        folder.write()
    if report is not None:
        write_page(done, report)
    if save_recipe is not None:
        write_recipe(done.recipe, save_recipe)
    if json_:
        print(done.to_json())
    elif not quiet:
        done.print(console(), verbose=verbose)


def export_mask(
    model: Annotated[str, typer.Argument(help="A file, a folder or a catalogue name, with zeros in its weights.")],
    output: Annotated[str, typer.Option("-o", "--output", help=".npz file of masks to write.")],
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write which weights a model keeps, for its trainer.

    The file holds a bool array a weight, true where it is kept, with the name, shape and axes of the initializer of the
    float model: inputs x outputs for MatMul, outputs x inputs for Gemm with transB; of a sparse model in whole blocks.
    """
    check_there(model)
    check_target(output)
    check_other(output, model)
    from ..families.sparse.masks import export_mask as run

    report = run(model, output)
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
        int | None,
        typer.Option(
            min=0,
            max=4,
            help="4: activations rounded to int8; 3: to bfloat16; 0 or 1: float32; the nodes' own by default.",
        ),
    ] = None,
    claim: Annotated[
        str | None, typer.Option(help="Families of nodes to take, with commas; by default what it is faster on.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack the weights of a low-bit model for the execution provider once, so that sessions map them."""
    check_there(model)
    if output is not None:
        check_target(output)
        check_other(output, model)
    from ..conversion.compile import compile_context as run

    report = run(model, output, accuracy_level=accuracy_level, claim=claim)
    note_written(report.output)
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
    """Export a PyTorch model to ONNX through optimum; encoders of Gemma 3 without it."""
    from onnxpress.models.export import export as run

    print(run(model, output, task=task, opset=opset))
