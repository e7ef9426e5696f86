"""Commands that look at models and time them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..analysis import study_requests
from ..calibration import Calibration
from ..errors import UsageError
from ..evaluation.names import check_task
from ..runtime.kernel_case import OPS, ROWS, SHAPES, Case, format_bits
from ..runtime.ray_address import check_ray
from ..sources import check_there
from .peers import PEERS, Nncf, NncfData, NncfImages, NncfSamples, NncfTokenizer, OpenVino, nncf_data
from .setting_options import options_of
from .terminal import (
    Claim,
    Dims,
    Json,
    Ray,
    as_written,
    console,
    kept_in,
    pairs_of,
    progress_bar,
    share,
    sizes,
)
from .text_options import Stride, TextFile, Tokenizer, Tokens, Window, text_of

Plot = Annotated[str | None, typer.Option(help="PNG file to write.")]


def _by_model(texts: list[str] | None, models: list[str], option: str) -> dict[str, str]:
    """What is meant for each model by MODEL=VALUE, and by a VALUE alone for those that have none of their own."""
    own: dict[str, str] = {}
    general: list[str] = []
    for text in texts or []:
        model = next((name for name in models if text.startswith(f"{name}=")), None)
        if model is None and "=" in text:
            raise UsageError(f'{option} "{text}": {text.partition("=")[0]} is none of the models')
        if model in own or (model is None and general):
            raise UsageError(f'{option} "{text}": is the second for {model or "all models"}')
        if model is None:
            general.append(text)
        else:
            own[model] = text.removeprefix(f"{model}=")
    return {**dict.fromkeys(models if general else (), *general), **own}


def check_plot(path: str | None) -> None:
    """Before anything is measured."""
    if path is not None:
        from ..model_io.target import check_target

        if not path.lower().endswith(".png"):
            raise UsageError(f'--plot "{path}": a PNG is written; give it a name that ends in .png')
        check_target(path)


@options_of("scheme", "embeddings", "coverage", "first_and_last")
def inspect(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A file, a folder or a catalogue name.")],
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node rather than counts.")] = False,
    json_: Json = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Show what is in a model, and what a scheme would take of it."""
    from ..settings.origin import Origin
    from ..settings.recipe import Recipe

    recipe = Recipe.from_mapping(settings, Origin(options=as_written(context, settings)))
    check_there(model)
    from ..analysis.inspect import inspect as run

    result = run(model, recipe)
    if json_:
        print(result.to_json())
    else:
        result.print(console(), nodes=nodes)


def compare(
    first: Annotated[str, typer.Argument(help="The reference: a file, a folder or a catalogue name.")],
    second: Annotated[str, typer.Argument(help="The model to judge.")],
    data: Annotated[str, typer.Option(help="An .npz file of inputs, or random.")] = "random",
    dim: Dims = None,
    ep: Annotated[bool, typer.Option("--ep", help="The model to judge on our execution provider.")] = False,
    claim: Claim = None,
    task: Annotated[
        str | None, typer.Option(help="Judge both by a task of evaluate, too; kl where there is a --text.")
    ] = None,
    text: TextFile = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    stride: Stride = None,
    tokens: Tokens = None,
    top: Annotated[int, typer.Option(min=1, help="Inner tensors to list.")] = 20,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Compare two models tensor by tensor, to find the layer that hurts."""
    check_plot(plot)
    dims, read = sizes(dim), text_of(text, tokenizer, window, stride, tokens)
    check_task(task, read)
    check_there(first, second)
    from ..analysis.compare import compare as run

    with progress_bar(json_) as progress:
        given = None if data == "random" else data
        result = run(
            first, second, data=given, dims=dims, provider=ep, claim=claim, task=task, text=read, progress=progress
        )
    if plot:
        from ..analysis.plots import plot_comparison

        plot_comparison(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(console(), top)


def bench(
    model: Annotated[list[str], typer.Argument(help="Files, folders or catalogue names; the first is the base.")],
    batch: Annotated[int, typer.Option(min=1, help="Size of dimensions named batch.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Size of dimensions named sequence.")] = 128,
    past: Annotated[int, typer.Option(min=0, help="Size of dimensions named past.")] = 0,
    dim: Dims = None,
    data: Annotated[
        str | None,
        typer.Option(help="Inputs, as optimize takes them for --calibration: the first sample, or --batch of them."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads; all cores by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 9,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also show where the time goes, by kind of step, in the plot as well.")
    ] = False,
    ort_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of ONNX Runtime's session configuration; repeatable.")
    ] = None,
    ep: Annotated[bool, typer.Option("--ep", help="Each model a second time, on our execution provider.")] = False,
    claim: Claim = None,
    openvino: OpenVino = False,
    nncf: Nncf = False,
    openvino_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of OpenVINO's CPU plugin; repeatable.", rich_help_panel=PEERS)
    ] = None,
    calibration: NncfData = None,
    samples: NncfSamples = None,
    images: NncfImages = None,
    tokenizer: NncfTokenizer = None,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Time models side by side in ONNX Runtime, and in OpenVINO where that is asked for."""
    check_plot(plot)
    dims = {"batch": batch, "sequence": seq, "past": past, **sizes(dim)}
    config, openvino_config = pairs_of(ort_option, "--ort-option"), pairs_of(openvino_option, "--openvino-option")
    if data is not None and dim:
        raise UsageError("--dim: the inputs of --data have their sizes; leave one out")
    check_there(*model)
    given = None
    if data is not None:
        given = Calibration(data, samples=batch, batch=batch, images=images, tokenizer=tokenizer)
        given.check_files()
        images, tokenizer = (images, tokenizer) if nncf else (None, None)
    asked = nncf_data(nncf, calibration, samples, images, tokenizer)
    if asked is not None:
        asked.check_files()
    from ..analysis.bench import bench as run

    with progress_bar(json_) as progress:
        result = run(
            model, dims=dims, threads=threads, rounds=rounds, config=config,
            provider=ep, claim=claim, openvino=openvino, data=given,
            nncf=asked,
            openvino_config=openvino_config, profile=profile, progress=progress,
        )  # fmt: skip
    if plot:
        from ..analysis.plots import plot_benchmark

        plot_benchmark(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(console())


def bench_kernels(
    shape: Annotated[list[str] | None, typer.Option(help="KxN of a weight; repeatable.")] = None,
    rows: Annotated[list[int] | None, typer.Option("--rows", "-m", min=1, help="Rows M; repeatable.")] = None,
    op: Annotated[str, typer.Option(help="matmul_nbits, qdq_matmul, dynamic_matmul or minifloat.")] = "matmul_nbits",
    bits: Annotated[int, typer.Option(help="2, 4 or 8, of matmul_nbits.")] = 4,
    format_: Annotated[str, typer.Option("--format", help="Of minifloat; ORT has it as float32.")] = "e4m3fn",
    block_size: Annotated[
        int | None, typer.Option(help="A power of two from 16, of matmul_nbits, or 0 for a column, of minifloat.")
    ] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(min=0, max=4, help="Of both sides; 4 by default, 0 for minifloat.")
    ] = None,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="With zero points.")] = False,
    cold: Annotated[int, typer.Option(min=0, help="MB of weights at least, so that they come from memory.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads; all cores by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 5,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Time products of ONNX Runtime and ours, against what the machine could do."""
    check_plot(plot)
    if op not in OPS:
        raise UsageError(f'--op "{op}": there are {", ".join(OPS)}')
    shapes = [_shape(text) for text in shape] if shape else SHAPES
    kind = (bits, 32 if block_size is None else block_size) if op == "matmul_nbits" else (8, 0)
    if op == "minifloat":
        kind = (format_bits(format_), block_size or 0)
    cases = [Case(m, k, n, *kind, op, format_) for k, n in shapes for m in rows or ROWS]
    from ..analysis.bench_kernels import bench_kernels as run

    with progress_bar(json_) as progress:
        result = run(
            cases, accuracy_level=accuracy_level, symmetric=not asymmetric, threads=threads, rounds=rounds,
            cold=cold * 10**6, progress=progress,
        )  # fmt: skip
    if plot:
        from ..analysis.plots import plot_kernels

        plot_kernels(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(console())


def study(
    models: Annotated[list[str], typer.Argument(help="Float models: files, folders or catalogue names.")],
    schemes: Annotated[
        str | None,
        typer.Option(
            help="As optimize takes them, with commas; int8-static,fp8-e5m2-static,fp8-static,fp8-e3m4-static,fp6,fp4 "
            "by default."
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "--metric",
            help="A task, perplexity, kl or embeddings of a --text, or module:function of a session, for all or as "
            "MODEL=NAME; repeatable. By default the cosine of outputs.",
        ),
    ] = None,
    text: TextFile = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    stride: Stride = None,
    tokens: Tokens = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Data as optimize takes it, for all or as MODEL=DATA; the catalogue's models have theirs."),
    ] = None,
    max_drop: Annotated[str, typer.Option(help="The most that a model may lose of its metric and pass.")] = "1%",
    max_kl: Annotated[float, typer.Option(help="The same of kl, in nats per token.")] = 0.02,
    threads: Annotated[int | None, typer.Option(min=1, help="That run the models; all cores by default.")] = None,
    folder: Annotated[str | None, typer.Option(help="Where converted models are kept, and found again.")] = None,
    ray: Ray = None,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Show which number formats models bear: the loss of a metric by scheme, and the share of models that pass."""
    check_plot(plot)
    if ray is not None:
        check_ray(ray)
    metrics, data = _by_model(task, models, "--task"), _by_model(calibration, models, "--calibration")
    most, read = share(max_drop, "--max-drop"), text_of(text, tokenizer, window, stride, tokens)
    chosen = study_requests.SCHEMES if schemes is None else [name.strip() for name in schemes.split(",")]
    judged_by = study_requests.metrics_of(models, metrics, read)
    study_requests.check_formats(models, chosen, judged_by, data, (most, max_kl), read)
    from ..analysis.format_study import study_formats as run

    with kept_in(folder), progress_bar(json_) as progress:
        result = run(
            models, chosen, metrics=metrics, data=data, max_drop=most, max_kl=max_kl, text=read, threads=threads,
            folder=folder, ray=ray, progress=progress,
        )  # fmt: skip
    if plot:
        from ..analysis.plots import plot_formats

        plot_formats(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(console())


def study_sparsity(
    model: Annotated[str, typer.Argument(help="A file, a folder or a catalogue name.")],
    folder: Annotated[str, typer.Option(help="Where the models and scores are kept, and found again.")],
    block: Annotated[list[str] | None, typer.Option(help="4x4 by default; repeatable.")] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="0.5 to 0.9 by default; repeatable.")] = None,
    criterion: Annotated[list[str] | None, typer.Option(help="obs and magnitude by default; repeatable.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Guessed by default; repeatable.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Data, as optimize takes it.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Size of dimensions named batch.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Size of dimensions named sequence.")] = 128,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Time the models, too.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 5,
    ray: Ray = None,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Show what a model loses and gains the more of it is pruned."""
    check_plot(plot)
    if ray is not None:
        check_ray(ray)
    check_there(model)
    tried: dict[str, Any] = {
        "blocks": block or study_requests.BLOCKS,
        "sparsities": sparsity or study_requests.SPARSITIES,
        "criteria": criterion or study_requests.CRITERIA,
    }
    study_requests.sparse_recipes(**tried)
    for name in task or ():
        check_task(name, None)
    data = Calibration(calibration) if calibration else None
    if data is not None:
        data.check_files()
    from ..analysis.sparsity_study import study_sparsity as run

    with kept_in(folder), progress_bar(json_) as progress:
        result = run(
            model, folder, dims={"batch": batch, "sequence": seq} if time else None, rounds=rounds,
            calibration=data, ray=ray, progress=progress, tasks=task or (), **tried,
        )  # fmt: skip
    if plot:
        from ..analysis.plots import plot_study

        plot_study(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(console())


def bench_sparse(
    shape: Annotated[list[str] | None, typer.Option(help="KxN of a weight; repeatable.")] = None,
    rows: Annotated[list[int] | None, typer.Option("--rows", "-m", min=1, help="Rows M; repeatable.")] = None,
    block: Annotated[list[str] | None, typer.Option(help="Inputs x outputs of a block; repeatable.")] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="Share of zeros; repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help="int8 (of float32), uint8 (codes to codes) or float32.")] = "int8",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of all; all cores by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 1,
    json_: Json = False,
) -> None:
    """Time block-sparse products beside dense ones, and beside PyTorch, SciPy and MKL where they are installed."""
    from ..analysis import sparse_case as sparse
    from ..sparsity import Block

    if dtype not in sparse.DTYPES:
        raise UsageError(f'--dtype "{dtype}": there are {", ".join(sparse.DTYPES)}')
    blocks = [Block.parse(text) for text in block] if block else sparse.BLOCKS
    cases = [
        sparse.SparseCase(m, k, n, each, share, dtype)
        for k, n in ([_shape(text) for text in shape] if shape else sparse.SHAPES)
        for each in blocks
        for share in sparsity or sparse.SPARSITIES
        for m in rows or sparse.ROWS
    ]
    from ..analysis.bench_sparse import bench_sparse as run

    with progress_bar(json_) as progress:
        result = run(cases, threads=threads, rounds=rounds, progress=progress)
    if json_:
        print(result.to_json())
    else:
        result.print(console())


def _shape(text: str) -> tuple[int, int]:
    sizes = text.lower().split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and 0 < int(size) < 2**31 for size in sizes):
        raise UsageError(f"--shape {text}: expected KxN, such as 4096x14336")
    return int(sizes[0]), int(sizes[1])
