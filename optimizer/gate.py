"""What stands between a conversion and a wrong model: checks of what is made, and runs beside the original.

    original: check, run -> clean-up: check, run, set aside where it changes numbers -> conversion: check
          -> write -> result: run, and tell how far its outputs are

The original runs once, for both comparisons. Checks cost nothing to speak of; runs cost what a model weighs, so beyond
500 MB of weights they are made where the recipe asks for them.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from .analysis.checker import Bare, bare, new_complaint, standing
from .analysis.feeds import Feeds, random_feeds
from .analysis.outputs import OutputError, beyond_rounding, output_errors
from .analysis.session import open_session, session_options
from .analysis.token_limits import token_limits
from .errors import OnnxpressError
from .passes import CleanUp
from .passes.clean_up import STEPS
from .passes.plan import release
from .report import size_text

MOST_WEIGHTS = 500_000_000
"""Bytes of weights up to which models are run without being asked to."""
_SIZES: tuple[tuple[Mapping[str, int], int], ...] = (
    ({"batch": 2, "sequence": 16, "past": 0}, 64),
    ({"batch": 1, "sequence": 16, "past": 0}, 48),
    ({"batch": 1, "sequence": 16}, 224),
    ({}, 224),
)
"""Sizes of open dimensions, and sides of images without a size, tried in turn until the original runs."""
_MOST_ELEMENTS = 1 << 16
"""Of all inputs together, up to which a batch has two samples: a second one repeats the same work."""
_SHOWN = 3
_MOST_LEFT_OUT = 3  # steps of a clean-up, beyond which there is none

Outputs = list[Any]
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class _Runs:
    """What the original computes.

    Attributes:
        on: What the inputs are, for a person.
        names: Of the outputs.
        feeds: Sets of inputs; behind the first, defaults of inputs are overridden.
        wanted: The outputs on each.
    """

    on: str
    names: list[str]
    feeds: list[Feeds]
    wanted: list[Outputs]


class Gate:
    """Watches over the conversion of one model.

    Attributes:
        warnings: What the user should know.
        rows: What was checked, for a person.
    """

    def __init__(self, model: ir.Model, check: bool | None, sample: Callable[[], Feeds | None] = lambda: None) -> None:
        """Look at a model before anything of it changes.

        Args:
            model: The original, whose nodes have names.
            check: Whether to run models; None does up to 500 MB of weights.
            sample: Gives inputs of the model where there are some, else random ones are made.
        """
        self.warnings: list[str] = []
        original = bare(model)
        self._standing = standing(original)
        size = sum(tensor.nbytes for tensor in original.weights.values())
        self._runs: _Runs | None = None
        self._errors: list[OutputError] = []
        if check is False:
            self._skipped = "not by a run: switched off"
        elif check is None and size > MOST_WEIGHTS:
            self._skipped = f"not by a run, {size_text(size)} of weights: --check makes it"
        else:
            self._skipped = ""
            given = sample()
            try:
                self._runs = _original(model, original, given)
            except OnnxpressError as error:
                self._skipped = f"not by a run: {error}"

    def clean_up(self, model: ir.Model) -> None:
        """CleanUp, in place, but for steps that change what the model computes, which are named in a warning."""
        without: list[str] = []
        while (problem := self._try(model, without)) is not None:
            guilty = self._guilty(model, without) if len(without) < _MOST_LEFT_OUT else None
            if guilty is None:
                self.warnings.append(f"clean-up was put aside: {problem}")
                return
            without.append(guilty)
            self.warnings.append(f"clean-up went without its step {guilty}: {problem}")

    def _guilty(self, model: ir.Model, without: Sequence[str]) -> str | None:
        """The first step with which something is wrong, where nothing is without it and those behind it."""
        low, high = 0, len(STEPS)  # right with the first `low` steps, wrong with the first `high`
        while high - low > 1:
            middle = (low + high) // 2
            if self._problem(model, {*without, *STEPS[middle:]})[1] is None:
                low = middle
            else:
                high = middle
        return STEPS[low] if self._problem(model, {*without, *STEPS[low:]})[1] is None else None

    def _try(self, model: ir.Model, without: Collection[str]) -> str | None:
        """Clean up where that is right; else what is wrong."""
        cleaned, problem = self._problem(model, without)
        if problem is None:
            model.graph = cleaned.graph
            model.functions.clear()
            model.functions.update(cleaned.functions)
        return problem

    def _problem(self, model: ir.Model, without: Collection[str]) -> tuple[ir.Model, str | None]:
        """A cleaned copy, and what is wrong with it."""
        cleaned = model.clone()
        try:
            CleanUp(without)(cleaned)
        except Exception as error:  # of the libraries, for graphs that they did not expect
            return cleaned, f"it fails with {type(error).__name__}: {_line(error)}"
        made = bare(cleaned)
        if (complaint := new_complaint(self._standing, made)) is not None:
            return cleaned, f"ONNX's checker refuses what it makes: {complaint.text}"
        if self._runs is None:
            return cleaned, None
        try:
            found = _run_bare(made, self._runs)
        except OnnxpressError as error:
            return cleaned, f"what it makes does not run: {error}"
        for wanted, outputs in zip(self._runs.wanted, found, strict=True):
            if (text := beyond_rounding(self._runs.names, wanted, outputs)) is not None:
                return cleaned, f"{text} on {self._runs.on}"
        return cleaned, None

    def check_result(self, model: ir.Model, source: str) -> None:
        """Look at what a conversion made, before it is written.

        Raises:
            OnnxpressError: It is no valid model, and the original was.
        """
        complaint = new_complaint(self._standing, bare(model))
        if complaint is None:
            return
        if complaint.fatal:
            raise OnnxpressError(
                f"{source}: the conversion made an invalid model, nothing written: {complaint.text}; keep the node in "
                "float with --exclude, and report this as a fault of onnxpress"
            )
        self.warnings.append(f"the model states other types or shapes than ONNX infers: {complaint.text}")

    def compare_result(self, path: Path, *, ours: bool) -> None:
        """Run the result beside the original, and warn where little is left of an output.

        Args:
            path: The result.
            ours: Whether it has operators of ours.
        """
        if self._runs is None:
            return
        try:
            found = _run_result(path, self._runs, ours)
        except OnnxpressError as error:
            self.warnings.append(f"the result does not run here: {error}")
            return
        self._errors = output_errors(self._runs.names, self._runs.wanted[0], found)
        for output in self._errors:
            if output.is_ruined:
                self.warnings.append(f"little is left of output {output}, beside float on {self._runs.on}")

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What was checked, and how far the outputs are."""
        how = self._skipped or (f"by a run on {self._runs.on}" if self._runs is not None else "")
        by = "names and nodes" if self._standing.plain else "names (ONNX's checker refuses the original)"
        rows = [("checked", f"{by}; {how}")]
        worst = sorted(self._errors, key=_rank)
        for index, error in enumerate(worst[:_SHOWN]):
            rows.append(("outputs" if index == 0 else "", str(error)))
        if len(worst) > _SHOWN:
            rows.append(("", f"and {len(worst) - _SHOWN} nearer to float"))
        return rows

    @property
    def details(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "by_checker": self._standing.plain,
            "run_on": None if self._runs is None else self._runs.on,
            "not_run": self._skipped or None,
            "outputs": [dataclasses.asdict(error) for error in self._errors],
        }


def _rank(error: OutputError) -> tuple[bool, float]:
    value = error.sqnr if error.equal is None else 100 * error.equal
    return error.shapes is None, 0.0 if value is None else value


def _original(model: ir.Model, original: Bare, sample: Feeds | None) -> _Runs:
    """What the original computes on a sample, or on random inputs.

    Raises:
        OnnxpressError: It cannot be run.
    """
    return _fed(original, "the original", lambda session, weights: _first_runs(session, weights, model, sample))


def _first_runs(session: Any, weights: Feeds, model: ir.Model, sample: Feeds | None) -> _Runs:
    names = [output.name for output in session.get_outputs()]
    refused: OnnxpressError | None = None
    inputs = [entry for entry in session.get_inputs() if entry.name not in weights]
    for feeds in _made(model, inputs) if sample is None else [sample]:
        try:
            wanted = _run(session, {**feeds, **weights}, names)
            break
        except OnnxpressError as error:
            refused = refused or error
    else:
        assert refused is not None
        raise refused
    on = "random inputs" if sample is None else "calibration data"
    runs = _Runs(on, names, [feeds], [wanted])
    if others := _overridden(session, model):
        others = {**feeds, **others}
        with suppress(OnnxpressError):  # its defaults may be the only numbers that it bears
            runs.wanted.append(_run(session, {**others, **weights}, names))
            runs.feeds.append(others)
    return runs


def _made(model: ir.Model, inputs: list[Any]) -> Iterator[Feeds]:
    limits = token_limits(model)
    seen: list[Any] = []
    for sizes, side in _SIZES:
        feeds = random_feeds(inputs, sizes, limits=limits, side=side)
        if sizes.get("batch") == 2 and sum(array.size for array in feeds.values()) > _MOST_ELEMENTS:
            feeds = random_feeds(inputs, {**sizes, "batch": 1}, limits=limits, side=side)
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes not in seen:
            seen.append(shapes)
            yield feeds


def _overridden(session: Any, model: ir.Model) -> Feeds:
    """Other numbers for the floats that inputs have by default."""
    found = {}
    for entry in session.get_overridable_initializers():
        tensor = model.graph.initializers[entry.name].const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.dtype.itemsize >= 2:
            array = tensor.numpy()
            noise = np.random.default_rng(0).uniform(0.5, 1.5, array.shape)
            found[entry.name] = np.asarray(array * noise + 0.1 * noise, array.dtype)
    return found


def _run_bare(model: Bare, runs: _Runs) -> list[Outputs]:
    """What a model computes that should compute the same."""
    return _fed(
        model, "the model",
        lambda session, weights: [_run(session, {**feeds, **weights}, runs.names) for feeds in runs.feeds],
    )  # fmt: skip


def _fed(model: Bare, name: str, use: Callable[[Any, Feeds], Result]) -> Result:
    """What is made of a session without optimizations, and of the weights that it is to be fed with.

    Raises:
        OnnxpressError: ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    options = session_options(ours="onnxpress" in {entry.domain for entry in model.proto.opset_import})
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    weights = {key: np.ascontiguousarray(tensor.numpy()) for key, tensor in model.weights.items()}
    try:
        return use(open_session(model.proto.SerializeToString(), options, name), weights)
    finally:
        weights.clear()
        for tensor in model.weights.values():
            with suppress(BufferError):  # an error on its way up may hold on to an array
                release(tensor)
        _trim()


def _run_result(path: Path, runs: _Runs, ours: bool) -> Outputs:
    """What a converted model computes, run as its users will.

    Raises:
        OnnxpressError: ONNX Runtime refuses the model.
    """
    options = session_options(ours=ours)
    options.enable_cpu_mem_arena = False
    return _run(open_session(path, options), runs.feeds[0], runs.names)


def _trim() -> None:
    """Give the memory of weights that were read back to the system, where the C library keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run(session: Any, feeds: Feeds, names: Sequence[str]) -> Outputs:
    try:
        outputs: Outputs = session.run(names, feeds)
    except Exception as error:  # ONNX Runtime raises a type for each of its status codes
        raise OnnxpressError(f"ONNX Runtime cannot run it: {_line(error)}") from error
    return outputs


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
