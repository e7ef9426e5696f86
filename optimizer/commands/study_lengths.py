"""The command that studies how few tokens an encoder needs."""

from __future__ import annotations

from typing import Annotated

import typer

from ..analysis import study_requests
from ..runtime.ray_address import check_ray
from ..sources import check_there
from .analyse import Plot, check_plot
from .terminal import Json, Ray, console, kept_in, progress_bar, share


def study_lengths(
    model: Annotated[str, typer.Argument(help="An encoder: a file, a folder or a catalogue name.")],
    folder: Annotated[str, typer.Option(help="Where recipes go, and the model of the loosest bound.")],
    task: Annotated[
        str,
        typer.Option("--task", "--metric", help="A task, embeddings of a --text, or module:function of a session."),
    ],
    max_drop: Annotated[
        list[str] | None, typer.Option(help="What may be lost, a recipe each; 0.5%, 1% and 3% by default; repeatable.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Text for embeddings.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Most tokens of a line of it; 256 by default.")] = None,
    fuse_layers: Annotated[
        bool, typer.Option("--fuse-layers/--no-fuse-layers", help="Layers as one operator each, as optimize has it.")
    ] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="Folder from which the same study goes on after an interruption.")
    ] = None,
    ray: Ray = None,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Show what an encoder in int8 loses and gains the fewer tokens go from layer to layer, and write recipes."""
    check_plot(plot)
    check_there(model)
    if ray is not None:
        check_ray(ray)
    bounds = [share(each, "--max-drop") for each in max_drop or study_requests.DROPS]
    recipe = study_requests.length_recipe(task, bounds, text, window, checkpoint, fuse_layers=fuse_layers)
    from ..analysis.length_study import study_lengths as run

    with kept_in(checkpoint), progress_bar(json_) as progress:
        result = run(model, folder, recipe, bounds, checkpoint=checkpoint, ray=ray, progress=progress)
    if plot:
        from ..analysis.plots import plot_lengths

        plot_lengths(result, plot)
    if json_:
        print(result.to_json())
    else:
        result.print(console())
