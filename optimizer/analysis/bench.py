"""Latency of several models side by side, all timed in one process."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxpress import ep

from ..calibration import Statistics
from ..calibration.archive import write_npz
from ..errors import OnnxpressError, UsageError, option
from ..model_io import storage
from ..runtime.feeds import Feeds, default_inputs, fitted, random_feeds, symbolic_sizes
from ..runtime.probe import Probe
from ..runtime.session import is_compiled, provider_options, uses_our_ops
from ..runtime.timing import take_turns
from ..runtime.token_limits import token_limits
from ..sources import resolve
from . import openvino as peers
from .steps import Profiled, Steps, print_steps, step_times

if TYPE_CHECKING:
    from rich.console import Console

    from ..calibration import Calibration

_SHAPES = 4  # inputs shown


@dataclasses.dataclass(frozen=True)
class Timing:
    """One model's figures.

    Attributes:
        model: What the user called it.
        ours: Whether nodes run on our kernels, as custom ops or on the execution provider.
        runs: Counted runs.
        median: Seconds.
        low: Tenth percentile in seconds.
        high: Ninetieth percentile in seconds.
        ratio: Median of the first model over this one's: how many times faster.
        load_seconds: Time to create a session, in a process of its own.
        memory: Bytes that the process gained by loading and one run.
        size: Bytes on disk.
    """

    model: str
    ours: bool
    runs: int
    median: float
    low: float
    high: float
    ratio: float
    load_seconds: float
    memory: int
    size: int


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """All figures of one comparison.

    Attributes:
        timings: In the order the models were given.
        machine: Processor, cores and the instruction set our kernels use.
        setup: ONNX Runtime's version and configuration.
        inputs: Shape of each input.
        left: What was not timed, and why.
        steps: Where the time of each model goes, if it was profiled; OpenVINO's is not.
    """

    timings: list[Timing]
    machine: str
    setup: str
    inputs: dict[str, list[int]]
    left: list[str] = dataclasses.field(default_factory=list)
    steps: list[Steps] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console) -> None:
        """A table for a person."""
        from rich.table import Table

        table = Table(title=f"{self.machine}\n{self.setup}\n{_shapes(self.inputs)}", title_justify="left", box=None)
        for column in ("model", "median ms", "p10 - p90", "speed-up", "load s", "memory MB", "disk MB"):
            table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
        for t in self.timings:
            table.add_row(
                t.model + (" *" if t.ours else ""), f"{1e3 * t.median:.2f}", f"{1e3 * t.low:.2f} - {1e3 * t.high:.2f}",
                f"{t.ratio:.2f}x", f"{t.load_seconds:.2f}", f"{t.memory / 1e6:,.0f}", _megabytes(t.size),
            )  # fmt: skip
        console.print(table)
        if any(t.ours for t in self.timings):
            console.print("* on the kernels of onnxpress")
        if self.steps:
            print_steps(self.steps, console)
        for line in self.left:
            console.print(f"cannot run: {line}", soft_wrap=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size >= 10**6 else f"{size / 1e6:.3f}"


def _shapes(inputs: dict[str, list[int]]) -> str:
    """The first few; a language model has a key and a value of each layer."""
    listed = [f"{name} {shape}" for name, shape in list(inputs.items())[:_SHAPES]]
    return ", ".join(listed) + (f" and {len(inputs) - _SHAPES} more" if len(inputs) > _SHAPES else "")


def bench(
    models: Sequence[str],
    *,
    dims: Mapping[str, int],
    threads: int | None = None,
    rounds: int = 9,
    config: Mapping[str, str] | None = None,
    provider: bool = False,
    claim: str | None = None,
    openvino: bool = False,
    nncf: Calibration | None = None,
    data: Calibration | None = None,
    openvino_config: Mapping[str, str] | None = None,
    profile: bool = False,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> Benchmark:
    """Time models on the same inputs.

    Args:
        models: Files, folders or names of the catalogue.
        dims: Sizes of symbolic dimensions of random inputs, see `random_feeds`.
        threads: Intra-op threads; all cores by default.
        rounds: Turns of each model.
        config: Session configuration entries of ONNX Runtime for all models.
        provider: Time each model a second time, on our execution provider.
        claim: The same, where it takes the nodes of these families, see `ep.append`.
        openvino: Time each model in OpenVINO too, compiled for the shapes of the inputs.
        nncf: Time in OpenVINO what NNCF makes of the first model with this data.
        data: Inputs in place of random ones: the first batch of this data.
        openvino_config: Properties of OpenVINO's CPU plugin.
        profile: Also run the models under ONNX Runtime's profiler, for `Benchmark.steps`.
        progress: Told how the work goes on.

    Raises:
        UsageError: The models differ in their inputs, the data does not fit them, `claim` names no family, or OpenVINO
            or NNCF is asked for and not installed.
        OnnxpressError: A model cannot be loaded or run in any of the ways asked for.
    """
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        common = _Common(
            threads or len(os.sched_getaffinity(0)), dims, dict(config or {}), dict(openvino_config or {}),
            Path(folder), *((None, _limits(models)) if data is None else (_first_batch(models[0], data), {})),
        )  # fmt: skip
        ours = provider_options(provider, claim)
        entries = [entry for model in models for entry in _entries(model, ours, openvino)]
        left = []
        if nncf is not None:
            try:
                entries.append(_rounded_by_nncf(models[0], nncf, Path(folder)))
            except UsageError:
                raise
            except OnnxpressError as error:
                left.append(f"{models[0]} by NNCF: {error}")
        result = _bench(entries, common, rounds, progress, profile=profile)
        return dataclasses.replace(result, left=result.left + left)


def _first_batch(model: str, data: Calibration) -> Feeds:
    path = resolve(model)
    opened = data.open(storage.load(path), None if Path(model).exists() else model, path)
    if isinstance(opened, Statistics):
        raise UsageError("statistics hold no inputs; give data")
    feeds, *_ = list(opened)
    if opened.seen is not None and opened.seen < opened.batch:
        raise UsageError(f"{opened.name}: has {opened.seen} samples, too few for a batch of {opened.batch}")
    return feeds


def _limits(models: Sequence[str]) -> dict[str, int]:
    """The least number that an integer must not reach in any of the models, by input."""
    found: dict[str, int] = {}
    for model in models:
        for name, limit in token_limits(storage.load(resolve(model))).items():
            found[name] = min(limit, found.get(name, limit))
    return found


@dataclasses.dataclass(frozen=True)
class _Common:
    """What is the same for all."""

    threads: int
    dims: Mapping[str, int]
    config: Mapping[str, str]
    openvino_config: Mapping[str, str]
    folder: Path
    given: Feeds | None  # in place of random inputs
    limits: Mapping[str, int]  # of random whole numbers

    def feeds(self, session: Any, model: str) -> Feeds:
        """The inputs of a model."""
        if self.given is None:
            return random_feeds(session.get_inputs(), self.dims, limits=self.limits)
        return fitted(self.given, session.get_inputs(), model, default_inputs(session))

    def sizes(self) -> dict[str, Any]:
        """What OpenVINO compiles for."""
        if self.given is None:
            return {"dims": dict(self.dims)}
        return {"shapes": {name: list(x.shape) for name, x in self.given.items()}}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A model in one way of running it."""

    model: str
    name: str
    path: Path
    size: int
    ours: bool = False
    provider: Mapping[str, str] | None = None  # options of ours, where it is appended
    onnx: Path | None = None  # in OpenVINO: the file that tells the inputs

    def options(self, common: _Common) -> dict[str, Any]:
        """What `open_any` takes beside the path."""
        if self.onnx is not None:
            config = dict(common.openvino_config)
            return {"onnx": str(self.onnx), "threads": common.threads, "config": config, **common.sizes()}
        provider = None if self.provider is None else dict(self.provider)
        return {"threads": common.threads, "ours": self.ours, "provider": provider, "config": dict(common.config)}


def _entries(model: str, provider: Mapping[str, str] | None, openvino: bool) -> list[_Entry]:
    """The model as it is, unless that cannot run, and where wanted on our execution provider and in OpenVINO."""
    path = resolve(model)
    loaded = storage.load(path)
    plain = _Entry(model, model, path, storage.size_on_disk(path, loaded), uses_our_ops(loaded))
    entries = [] if provider is not None and is_compiled(loaded) else [plain]
    if provider is not None:
        claim = f" ({provider['claim']})" if "claim" in provider else ""
        entries.append(dataclasses.replace(plain, name=f"{model} + ep{claim}", provider=provider))
    if openvino:
        entries.append(_Entry(model, f"{model} in OpenVINO", path, plain.size, onnx=path))
    return entries


def _rounded_by_nncf(model: str, calibration: Calibration, folder: Path) -> _Entry:
    onnx = resolve(model)
    made = peers.quantize(model, calibration, folder)
    size = sum(file.stat().st_size for file in (made, made.with_suffix(".bin")))
    return _Entry(model, f"{model} by NNCF in OpenVINO", made, size, onnx=onnx)


def _bench(
    entries: Sequence[_Entry], common: _Common, rounds: int, progress: Callable[[str, int, int], None], *, profile: bool
) -> Benchmark:  # fmt: skip
    runs: list[_Run] = []
    loads: list[dict[str, float]] = []
    failed: list[tuple[_Entry, OnnxpressError]] = []
    for entry in entries:
        try:
            run = _Run(entry, common)
            if runs:
                _refuse_other_inputs(runs[0], run)
            run()  # what fails, fails here, with a message of our own
            loads.append(_probe_load(run, common))
            runs.append(run)
        except UsageError:
            raise
        except OnnxpressError as error:
            failed.append((entry, error))
    for entry, reason in failed:
        if all(run.entry.model != entry.model for run in runs):
            raise reason
    samples = take_turns(runs, rounds, progress)
    medians = [float(np.median(times)) for times in samples]
    timings = [
        Timing(
            run.entry.name, run.is_ours(), len(times), median, float(np.percentile(times, 10)),
            float(np.percentile(times, 90)), medians[0] / median, load["load_seconds"], int(load["memory"]),
            run.entry.size,
        )
        for run, times, median, load in zip(runs, samples, medians, loads, strict=True)
    ]  # fmt: skip
    runtimes = setup(common.threads, common.config)
    if any(entry.onnx is not None for entry in entries):
        runtimes += f"\n{peers.setup(common.openvino_config)}"
    steps = _steps(runs, common, rounds) if profile else []
    left = [f"{entry.name}: {str(reason).removeprefix(f'{entry.path}: ')}" for entry, reason in failed]
    return Benchmark(timings, machine(), runtimes, {k: list(v.shape) for k, v in runs[0].feeds.items()}, left, steps)


def _steps(runs: Sequence[_Run], common: _Common, rounds: int) -> list[Steps]:
    profiled = [
        Profiled(run.entry.name, run.entry.path, run.entry.options(common), run.feeds)
        for run in runs
        if run.entry.onnx is None
    ]
    return step_times(profiled, common.folder, peak=Probe(common.threads).dot_rate(), rounds=rounds)


def _refuse_other_inputs(first: _Run, run: _Run) -> None:
    """Times of different work say nothing; floats may be of another width."""
    ours, theirs = (
        {name: f"{array.dtype.kind}{list(array.shape)}" for name, array in each.feeds.items()} for each in (first, run)
    )
    if ours.keys() != theirs.keys():
        raise UsageError(
            f"{run.entry.name}: has the inputs {', '.join(theirs)}, {first.entry.name} has {', '.join(ours)}; what is "
            "timed side by side has to do the same work"
        )
    for name, array in run.feeds.items():
        if ours[name] != theirs[name]:
            other = first.feeds[name]
            raise UsageError(
                f"{run.entry.name}: input '{name}' is {array.dtype} {list(array.shape)}, in {first.entry.name} it is "
                f"{other.dtype} {list(other.shape)}; sizes can be chosen with {option('dim')}"
            )


class _Run:
    """A call that runs a model once."""

    def __init__(self, entry: _Entry, common: _Common) -> None:
        self.entry, self._session = entry, peers.open_any(entry.path, entry.options(common))
        self.feeds = common.feeds(self._session, entry.name)

    def is_ours(self) -> bool:
        """Whether there are custom ops of ours, or our execution provider takes any node.

        ONNX Runtime before 1.24 tells that it is there only.
        """
        if self.entry.ours or self.entry.provider is None:
            return self.entry.ours
        if ep.NAME not in self._session.get_providers():
            return False
        return not hasattr(self._session, "get_provider_graph_assignment_info") or bool(
            ep.assigned_nodes(self._session).get(ep.NAME)
        )

    def __call__(self) -> None:
        try:
            self._session.run(None, self.feeds)
        except OnnxpressError:
            raise
        except Exception as error:  # ONNX Runtime raises a type for each of its status codes
            sizes = ", ".join(symbolic_sizes(self._session.get_inputs()))
            hint = f" (sizes to choose with {option('dim')} NAME=SIZE: {sizes})" if sizes else ""
            raise OnnxpressError(f"{self.entry.path}: cannot run: {str(error).splitlines()[0]}{hint}") from error


def _probe_load(run: _Run, common: _Common) -> dict[str, float]:
    path, feeds = str(run.entry.path), common.folder / "feeds.npz"
    write_npz(feeds, run.feeds)
    options = json.dumps(run.entry.options(common))
    command = [sys.executable, "-m", f"{__package__}.load_probe", path, options, str(feeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["the process died"]
        message = lines[-1].split("Error: ", 1)[-1]
        raise OnnxpressError(message if path in message else f"{path}: {message}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def machine() -> str:
    """Processor, cores and the instruction set our kernels use."""
    from onnxpress.custom_ops import _kernels

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores, kernels for {_kernels.chosen_isa()}"


def setup(threads: int, config: Mapping[str, str]) -> str:
    """ONNX Runtime's version and configuration."""
    import onnxruntime

    extra = "".join(f", {key}={value}" for key, value in config.items())
    return f"ONNX Runtime {onnxruntime.__version__}, CPU, {threads} threads, all graph optimizations{extra}"
