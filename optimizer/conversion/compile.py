"""Saving what the execution provider makes of a model, so that the next session need not make it again.

ONNX Runtime writes the model with EPContext nodes in the place of what was compiled; our library writes the packed
weights into one file. Both go into a temporary folder beside the target. The weights move first, under a name that
carries a hash of them, and the model last: until it is replaced, the old model keeps finding its old weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnxpress import ep

from ..errors import OnnxpressError, UsageError
from ..model_io import storage
from ..model_io.external_data import common_folder
from ..model_io.reading import to_proto
from ..model_io.traverse import inner_graphs
from ..passes.separate_inner_graphs import prepare_inner_graphs, restore_inner_graphs
from ..planning.report import ContextReport, group_reasons
from ..runtime.session import FOLDER_KEY, compiled_nodes, is_compiled, session_options, wrong_option
from ..sources import resolve

_INNER_GRAPHS = (
    " (the model has graphs inside nodes, which ONNX Runtime 1.23 cannot save where the execution provider takes"
    " nodes of them, and newer versions not where they return constants beyond 127 bytes)"
)


def compile_context(
    model: str | Path,
    output: str | Path | None = None,
    *,
    accuracy_level: int | None = None,
    claim: str | None = None,
) -> ContextReport:
    """Write a model whose weights are packed for the execution provider already.

    It runs on the execution provider alone, and maps its weights when it is loaded.

    Args:
        model: A file, a folder of an exported model, or a name of the catalogue.
        output: The file to write. By default "NAME.ctx.onnx" beside the model, for a name of the catalogue in the
            current folder.
        accuracy_level: As in `ep.append`; what a session says when it loads the output wins.
        claim: As in `ep.append`.

    Returns:
        What was done.

    Raises:
        UsageError: An option is wrong, or the output cannot be written where it is asked for.
        OnnxpressError: The model cannot be read, or the execution provider takes nothing of it.
    """
    start = time.perf_counter()
    path = resolve(model)
    target = storage.check_target(output or _default_output(model, path))
    source = storage.load(path)
    storage.check_apart(target, path, source)
    if is_compiled(source):
        raise OnnxpressError(f"{path}: the model is compiled already; start from the one that it was made of")
    given = {"accuracy_level": accuracy_level, "claim": claim}
    options: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    with _folder_beside(target) as folder:
        made = folder / target.name
        moved = _make(path, source, made, options)
        if not made.exists():
            inside = "".join(f"; {count} {what}" for what, count in _inside(source).items())
            raise OnnxpressError(
                f"{path}: nothing to compile, nothing written: the execution provider takes no node{inside}"
            )
        context = storage.load(made)
        restore_inner_graphs(context, moved, len(source.graph.outputs))
        _tidy(context)
        with _alone_in(target.parent):
            weights = _place_weights(folder, target, context)
            size_weights = weights.stat().st_size
            replaced = _old_weights(target)
            storage.save(context, target)
            for old in replaced - {weights}:
                old.unlink(missing_ok=True)
            size = storage.size_on_disk(target, context)
    compiled = len(list(compiled_nodes(context)))
    return ContextReport(
        source=str(path),
        output=str(target),
        weights=weights.name,
        compiled=compiled,
        left=len(context.graph) - compiled,
        inside=_inside(context),
        size_before=storage.size_on_disk(path, source),
        size_after=size,
        size_weights=size_weights,
        seconds=time.perf_counter() - start,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _default_output(model: str | Path, path: Path) -> Path:
    return path.with_name(f"{path.stem}.ctx.onnx") if Path(model).exists() else Path(f"{model}.ctx.onnx")


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    try:
        folder = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise OnnxpressError(f"{target}: cannot write: {error.strerror}") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Nobody else who asks for it: or they could remove, as replaced, weights that a model is about to name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make(path: Path, source: ir.Model, made: Path, options: dict[str, object]) -> set[str]:
    """Have ONNX Runtime write the model and our library the weights; nothing is written where nothing is taken.

    Returns:
        Names of the constants of inner graphs that are in the main graph of what was written.
    """
    import onnxruntime as ort

    config = {"ep.context_enable": "1", "ep.context_file_path": str(made)}
    if storage.has_external_data(source):  # beyond 2 GB nothing else works
        config["ep.context_model_external_initializers_file_name"] = f"{made.name}.data"
    savable = source.clone()
    moved = prepare_inner_graphs(savable)
    model: Path | bytes = path
    if len(savable.graph.outputs) > len(source.graph.outputs):
        config[FOLDER_KEY] = str(common_folder(savable, path))
        model = to_proto(savable).SerializeToString()
    chosen = session_options(config=config)
    # More comes after the model is written, and would look for constants of inner graphs there.
    chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        ep.session(model, chosen, **options)
    except Exception as error:  # ONNX Runtime raises a type for each of its status codes
        line = str(error).strip().splitlines()[0]
        if (wrong := wrong_option(line)) is not None:
            raise UsageError(wrong) from error
        inner = _INNER_GRAPHS if len(list(storage.graphs(source))) > 1 else ""
        raise OnnxpressError(f"{path}: cannot compile: {line}{inner}") from error
    return moved


def _inside(model: ir.Model) -> dict[str, int]:
    """The nodes of graphs inside nodes, with the reason why they are not compiled."""
    inside = [
        (node.op_type, f"inside {holder.op_type}, where ONNX Runtime saves no compiled nodes")
        for holder in model.graph.all_nodes()
        for graph in inner_graphs(holder)
        for node in graph
    ]
    return group_reasons(inside)


def _tidy(model: ir.Model) -> None:
    """Small constants move into the model, and the domains of ONNX Runtime's that no node uses go."""
    for value in storage.initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes < storage.LEAST_EXTERNAL:
            value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
    used = {node.domain for graph in storage.graphs(model) for node in graph} | {""}
    for domain in set(model.graph.opset_imports) - used:
        del model.graph.opset_imports[domain]


def _weights_names(model: ir.Model) -> set[str]:
    attributes = [node.attributes.get("ep_cache_context") for node in compiled_nodes(model)]
    return {attribute.as_string() for attribute in attributes if attribute is not None}


def _place_weights(folder: Path, target: Path, model: ir.Model) -> Path:
    names = _weights_names(model)
    if len(names) != 1:
        raise OnnxpressError(f"{target}: ONNX Runtime compiled the model in {len(names)} steps; nothing was written")
    (name,) = names
    weights = target.with_name(name)
    os.replace(folder / name, weights)
    return weights


def _old_weights(target: Path) -> set[Path]:
    """Files that the model at `target`, if any, refers to and that this module wrote for it."""
    ours = re.compile(re.escape(target.name) + r"\.[0-9a-f]{16}\.weights")
    try:
        names = _weights_names(storage.load(target))
    except OnnxpressError:
        return set()
    return {target.with_name(name) for name in names if ours.fullmatch(name)}
