"""The command that observes a model on data."""

from __future__ import annotations

from typing import Annotated

import typer

from ..calibration import Calibration
from ..conversion.request import check_merge, check_observation
from ..errors import UsageError
from ..model_io.target import check_target
from ..sources import check_there
from .terminal import Json, Quiet, console, progress_bar


def calibrate(
    model: Annotated[list[str], typer.Argument(help="A file, a folder or a catalogue name; with --merge, files.")],
    output: Annotated[str, typer.Option("-o", "--output", help=".npz file of statistics to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            help=".npz or .npy file, folder of them or of images, text file, or module:function; a model of the "
            "catalogue has its own."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Take so many at most; all by default, 128 of the catalogue's own.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a run.")] = 1,
    images: Annotated[
        str | None, typer.Option(help="How images become inputs: imagenet, caffe, tensorflow, unit, bytes, or a TOML.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="tokenizer.json for text; the one beside the model by default.")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of each sample of text; 128 of an encoder's lines, 512 of a decoder's windows."
        ),
    ] = None,
    gram: Annotated[bool, typer.Option("--gram", help="Keep X'X of the inputs of products, too, for sparse.")] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge files of statistics instead of running a model.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Observe what a model's tensors hold on some data, for static schemes and sparse."""
    if merge and data is not None:
        raise UsageError("--merge: reads files of statistics only; leave --data out")
    if not merge and len(model) != 1:
        raise UsageError(f"{len(model)} models given; name one, or give --merge for files of statistics")
    check_target(output, model if merge else [*model, data])
    if merge:
        check_merge(model)
    else:
        check_there(*model)
        check_observation(model[0], Calibration(data, images=images, tokenizer=tokenizer))
    from ..conversion import calibrate as calibration

    if merge:
        result = calibration.merge(model, output)
    else:
        with progress_bar(quiet or json_) as progress:
            result = calibration.calibrate(
                model[0], data, output, samples=samples, batch=batch, images=images, tokenizer=tokenizer,
                length=length, gram=gram, progress=progress,
            )  # fmt: skip
    if json_:
        print(result.to_json())
    elif not quiet:
        result.print(console())
