"""Commands that write models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .analyse import Dims, sizes
from .terminal import (
    FP8,
    WEIGHT_ONLY,
    Coverage,
    Embeddings,
    FirstAndLast,
    Json,
    Quiet,
    as_written,
    console,
    note_written,
    progress_bar,
    share,
)

# Panels of options by the schemes that take them.
_AND_INT8 = "Weights alone and int8-static"
_DATA = "Data of static schemes, sparse, and weights alone"
_RANGES = "Static schemes and sparse"
_STATIC = "int8-static and fp8-static"
_INT8_STATIC = "int8-static"
_INT8 = "int8-static and int8-dynamic"
_SPARSE = "sparse"


def optimize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A file, a folder of an exported model, or a catalogue name.")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="File to write.")] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="int2, int3, int4 (default), int5, int6, int8; fp8, fp8-e3m4, fp8-e5m2, fp6, fp6-e2m3, fp6-e3m2, fp4, "
            "nf4, mxfp8, mxfp6, mxfp4, bfp8, bfp6, bfp4; int8-static, int8-dynamic; fp8-static, fp8-e3m4-static, "
            "fp8-e5m2-static, fp8-mixed-static, fp8-dynamic; or sparse."
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="TOML file; options given here override it.")] = None,
    search: Annotated[bool | None, typer.Option("--search/--no-search", help="Search the best scales.")] = None,
    clean_up: Annotated[bool | None, typer.Option("--clean-up/--no-clean-up", help="Fold and fuse first.")] = None,
    check: Annotated[
        bool | None,
        typer.Option("--check/--no-check", help="Run the model before and after; by default up to 500 MB of weights."),
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only nodes whose name matches; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not nodes whose name matches; repeatable.")] = None,
    block_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale: 16 to 256; 0: a channel.", rich_help_panel=WEIGHT_ONLY),
    ] = None,
    scale_type: Annotated[
        str | None,
        typer.Option(help="float32, float16; of fp and nf also bfloat16, e8m0, pow2.", rich_help_panel=WEIGHT_ONLY),
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="qoperator (default), qdq or onnxpress.", rich_help_panel=WEIGHT_ONLY)
    ] = None,
    accuracy_level: Annotated[
        int | None,
        typer.Option(
            help="4: activations rounded to int8; 3: to bfloat16; 0 or 1: float32.", rich_help_panel=WEIGHT_ONLY
        ),
    ] = None,
    embeddings: Embeddings = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="One fixed zero point, or one a block or tensor.",
            rich_help_panel=_AND_INT8,
        ),
    ] = None,
    per_channel: Annotated[
        bool | None,
        typer.Option(
            "--per-channel/--per-tensor",
            help="Scales of weights; of weights alone with --block-size 0.",
            rich_help_panel=_AND_INT8,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help=".npz, a folder of .npy or images, lines of text, or module:function.", rich_help_panel=_DATA
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples to take of it; 128.", rich_help_panel=_DATA)
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples a run; 1.", rich_help_panel=_DATA)] = None,
    images: Annotated[
        str | None, typer.Option(help="How images become inputs: a name, or a TOML file.", rich_help_panel=_DATA)
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="tokenizer.json for lines of text.", rich_help_panel=_DATA)
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            help="What `onnxpress calibrate` wrote, in place of data; --gram for sparse.", rich_help_panel=_RANGES
        ),
    ] = None,
    range_method: Annotated[
        str | None,
        typer.Option(
            help="minmax (default of fp8), moving-average, percentile (default of int8); of int8 entropy and mse, too.",
            rich_help_panel=_RANGES,
        ),
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(help="Share in percent that the method percentile keeps; 99.999.", rich_help_panel=_RANGES),
    ] = None,
    smooth: Annotated[
        bool | None,
        typer.Option(
            "--smooth/--no-smooth",
            help="Outliers into weights of MatMul; --smooth: also by a Mul.",
            rich_help_panel=_STATIC,
        ),
    ] = None,
    restore_moments: Annotated[
        bool | None,
        typer.Option(
            "--restore-moments/--no-restore-moments", help="Mean and deviation of channels.", rich_help_panel=_STATIC
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="Bound on the metric's drop, such as 1%; some layers stay in float for it.", rich_help_panel=_STATIC
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="A task, or module:function of a session; by default the cosine of outputs.",
            rich_help_panel=_STATIC,
        ),
    ] = None,
    activation_type: Annotated[
        str | None,
        typer.Option(help="uint8 (default) or int8, which stock x86 computes in float.", rich_help_panel=_INT8_STATIC),
    ] = None,
    equalize: Annotated[
        bool | None,
        typer.Option(
            "--equalize/--no-equalize",
            help="Even out channels of neighbouring layers; not by default.",
            rich_help_panel=_INT8_STATIC,
        ),
    ] = None,
    compensate: Annotated[
        bool | None,
        typer.Option(
            "--compensate/--no-compensate", help="Rounding of weights by the data.", rich_help_panel=_AND_INT8
        ),
    ] = None,
    correct_bias: Annotated[
        bool | None,
        typer.Option("--correct-bias/--no-correct-bias", help="Mean error of weights.", rich_help_panel=_INT8_STATIC),
    ] = None,
    only_if_faster: Annotated[
        bool | None,
        typer.Option(
            "--only-if-faster/--always",
            help="Layers measured slower in int8 stay in float.",
            rich_help_panel=_INT8_STATIC,
        ),
    ] = None,
    reduce_range: Annotated[
        bool | None,
        typer.Option("--reduce-range/--full-range", help="Weights of 7 bits; asks the target.", rich_help_panel=_INT8),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="CPUs to run on: this machine's (this) or any, by weights of 7 bits.", rich_help_panel=_INT8),
    ] = None,
    weight_format: Annotated[
        str | None, typer.Option(help="e4m3fn, e5m2, e3m4, e3m2, e2m3 or e2m1.", rich_help_panel=FP8)
    ] = None,
    activation_format: Annotated[str | None, typer.Option(help="e4m3fn, e5m2 or e3m4.", rich_help_panel=FP8)] = None,
    coverage: Coverage = None,
    first_and_last: FirstAndLast = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of blocks to remove; 0.8, or 0.5 by magnitude.", rich_help_panel=_SPARSE)
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(help="Inputs x outputs: 4x4 (default), 4x1, 1x4, 1x16 or others.", rich_help_panel=_SPARSE),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of what is kept: int8 (default) or float32.", rich_help_panel=_SPARSE)
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="magnitude, wanda or obs, which also moves what is kept; obs where there is data.",
            rich_help_panel=_SPARSE,
        ),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(help="sensitivity (default): more where layers lose less; or uniform.", rich_help_panel=_SPARSE),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            help="Scales of them, for --dtype int8 alone: dynamic (default) or static.", rich_help_panel=_SPARSE
        ),
    ] = None,
    sequential: Annotated[
        bool | None,
        typer.Option(
            "--sequential/--at-once",
            help="Move weights for what pruned layers before them make.",
            rich_help_panel=_SPARSE,
        ),
    ] = None,
    prune: Annotated[
        bool | None,
        typer.Option("--prune/--no-prune", help="Or leave out zeros that are there, exactly.", rich_help_panel=_SPARSE),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help=".npz of what to keep, as export-mask writes it.", rich_help_panel=_SPARSE)
    ] = None,
    expect_m: Annotated[
        int | None,
        typer.Option(help="Rows of activations; layers faster dense with so many stay so.", rich_help_panel=_SPARSE),
    ] = None,
    dim: Dims = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a model to low-bit or sparse forms."""
    from ..calibration import Calibration
    from ..conversion.pipeline import optimize as run
    from ..model_io.storage import check_target
    from ..settings.origin import Origin
    from ..settings.recipe import Recipe

    given = {
        "scheme": scheme, "block_size": block_size, "symmetric": symmetric, "search": search,
        "scale_type": scale_type, "form": form, "accuracy_level": accuracy_level, "embeddings": embeddings,
        "clean_up": clean_up, "check": check, "include": include or None, "exclude": exclude or None,
        "range_method": range_method,
        "percentile": percentile, "activation_type": activation_type, "per_channel": per_channel,
        "reduce_range": reduce_range, "target": target, "equalize": equalize, "smooth": smooth,
        "correct_bias": correct_bias, "compensate": compensate, "restore_moments": restore_moments, "metric": metric,
        "max_drop": None if max_drop is None else share(max_drop, "--max-drop"),
        "only_if_faster": only_if_faster, "weight_format": weight_format, "activation_format": activation_format,
        "coverage": coverage, "first_and_last": first_and_last, "sparsity": sparsity, "block": block, "dtype": dtype,
        "criterion": criterion, "allocation": allocation, "activations": activations, "sequential": sequential,
        "prune": prune, "mask": mask, "expect_m": expect_m,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    learnt: dict[str, Any] = {
        "data": calibration, "statistics": statistics, "samples": samples, "batch": batch, "images": images,
        "tokenizer": tokenizer,
    }  # fmt: skip
    options = as_written(context, {**given, **learnt}) | {"data": "--calibration"}
    origin = Origin(recipe or "recipe", options)
    chosen = Recipe.from_toml(recipe, given, options) if recipe else Recipe.from_mapping(given, origin)
    data = Calibration(**learnt)
    if output is not None:
        check_target(output, [recipe])
    with progress_bar(quiet or json_) as progress, origin.stated():
        report = run(model, chosen, output, calibration=data, dims=sizes(dim), progress=progress)
    note_written(report.output)
    if json_:
        print(report.to_json())
    elif not quiet:
        report.print(console())


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
            help="4: activations rounded to int8; 3: to bfloat16; 0 or 1: float32; the nodes' own by default."
        ),
    ] = None,
    claim: Annotated[
        str | None, typer.Option(help="Families of nodes to take, with commas; by default what it is faster on.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack the weights of a low-bit model for the execution provider once, so that sessions map them."""
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
    """Export a PyTorch model to ONNX through optimum."""
    from onnxpress.models.export import export as run

    print(run(model, output, task=task, opset=opset))
