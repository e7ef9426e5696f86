"""What a model computes before it is changed, to hold what is made of it against.

The model runs once, on data or on random inputs, without optimizations: then none of the runtime's own is mistaken for
a fault, and weights, which are fed like inputs, are neither copied nor packed.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from ..errors import OnnxpressError
from ..passes.constants import release
from .checker import Bare
from .feeds import Feeds, is_float, random_feeds
from .outputs import OutputError, beyond_rounding, output_errors
from .session import open_session, session_options
from .token_limits import token_limits

_SIZES: tuple[tuple[Mapping[str, int], int], ...] = (
    ({"batch": 2, "sequence": 16, "past": 0}, 64),
    ({"batch": 1, "sequence": 16, "past": 0}, 48),
    ({"batch": 1, "sequence": 16}, 224),
    ({}, 224),
)
"""Sizes of open dimensions, and sides of images without a size, tried in turn until the model runs."""
_MOST_ELEMENTS = 1 << 16
"""Of all inputs together, up to which a batch has two samples: a second one repeats the same work."""
_RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
_STEP = 1e-6
"""Of inputs, relative, to which a model is steep where its outputs change by more than rounding."""

Outputs = list[Any]
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the original computes.

    Attributes:
        on: What the inputs are, for a person.
        names: Of the outputs.
        feeds: Sets of inputs; a second one overrides floats that inputs have by default.
        wanted: The outputs on each.
    """

    on: str
    names: list[str]
    feeds: list[Feeds]
    wanted: list[Outputs]

    def difference(self, model: Bare) -> str | None:
        """What a model computes otherwise, beyond rounding, that should compute the same.

        Raises:
            OnnxpressError: ONNX Runtime cannot run it.
        """
        return self._difference(_fed(model, "the model", lambda session, weights: self._run(session, weights)))

    def is_steep(self, original: Bare) -> bool:
        """Whether rounding alone changes what the original computes: a step of its inputs, or another order of sums."""
        rng = np.random.default_rng(1)
        moved = [
            {name: _moved(array, rng) if _is_floats(array) else array for name, array in feeds.items()}
            for feeds in self.feeds
        ]
        beside = dataclasses.replace(self, feeds=moved)
        try:
            return any(
                self._difference(_fed(original, "the original", each._run, optimized=optimized)) is not None
                for each, optimized in ((beside, False), (self, True))
            )
        except OnnxpressError:
            return True

    def errors(self, path: Path, *, ours: bool) -> list[OutputError]:
        """How far the outputs of a converted model are, run as its users will.

        Args:
            path: The model.
            ours: Whether it has operators of ours.

        Raises:
            OnnxpressError: ONNX Runtime cannot load or run it.
        """
        options = session_options(ours=ours)
        options.enable_cpu_mem_arena = False
        found = _run(open_session(path, options), self.feeds[0], self.names)
        return output_errors(self.names, self.wanted[0], found)

    def _run(self, session: Any, weights: Feeds) -> list[Outputs]:
        return [_run(session, {**feeds, **weights}, self.names) for feeds in self.feeds]

    def _difference(self, found: list[Outputs]) -> str | None:
        texts = (beyond_rounding(self.names, *pair) for pair in zip(self.wanted, found, strict=True))
        return next((text for text in texts if text is not None), None)


def run_original(model: ir.Model, bare: Bare, sample: Feeds | None, dims: Mapping[str, int] | None = None) -> Reference:
    """What a model computes on a sample, or on random inputs.

    Args:
        model: The model.
        bare: The same without weights.
        sample: Its inputs; None makes some up.
        dims: Open sizes of those that are made up, as in `random_feeds`.

    Raises:
        UsageError: No input has a size of that name.
        OnnxpressError: Its inputs cannot be made up, ONNX Runtime cannot run it, or it draws random numbers.
    """
    return _fed(bare, "the original", lambda session, weights: _first(session, weights, model, sample, dims or {}))


def _first(session: Any, weights: Feeds, model: ir.Model, sample: Feeds | None, dims: Mapping[str, int]) -> Reference:
    names = [output.name for output in session.get_outputs()]
    feeds, wanted = _that_runs(session, weights, names, model, sample, dims)
    if _draws(model):
        again = _run(session, {**feeds, **weights}, names)
        if beyond_rounding(names, wanted, again) is not None:
            raise OnnxpressError("the original draws random numbers")
    found = Reference("random inputs" if sample is None else "calibration data", names, [feeds], [wanted])
    if others := _overridden(session, model):
        others = {**feeds, **others}
        with suppress(OnnxpressError):  # its defaults may be the only numbers that it bears
            found.wanted.append(_run(session, {**others, **weights}, names))
            found.feeds.append(others)
    return found


def _that_runs(
    session: Any,
    weights: Feeds,
    names: Sequence[str],
    model: ir.Model,
    sample: Feeds | None,
    dims: Mapping[str, int],
) -> tuple[Feeds, Outputs]:
    inputs = [entry for entry in session.get_inputs() if entry.name not in weights]
    refused: OnnxpressError | None = None
    for feeds in _made(model, inputs, dims) if sample is None else [sample]:
        try:
            return feeds, _run(session, {**feeds, **weights}, names)
        except OnnxpressError as error:
            refused = refused or error
    assert refused is not None
    if sample is None:
        raise OnnxpressError(f"no random inputs fit it, whose open sizes are unknown: {refused}") from refused
    raise refused


def _made(model: ir.Model, inputs: list[Any], dims: Mapping[str, int]) -> Iterator[Feeds]:
    limits = token_limits(model)
    seen: list[Any] = []
    for sizes, side in _SIZES:
        feeds = random_feeds(inputs, {**sizes, **dims}, limits=limits, side=side)
        if sizes.get("batch") == 2 and sum(array.size for array in feeds.values()) > _MOST_ELEMENTS:
            feeds = random_feeds(inputs, {**sizes, "batch": 1, **dims}, limits=limits, side=side)
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes not in seen:
            seen.append(shapes)
            yield feeds


def _draws(model: ir.Model) -> bool:
    """Whether a node may draw random numbers."""
    nodes = [*model.graph.all_nodes(), *(node for each in model.functions.values() for node in each.all_nodes())]
    return any(node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.inputs) > 2) for node in nodes)


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


def _is_floats(value: object) -> bool:
    return isinstance(value, np.ndarray) and is_float(value.dtype)


def _moved(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(array * (1 + _STEP * rng.standard_normal(array.shape)), array.dtype)


def _fed(model: Bare, name: str, use: Callable[[Any, Feeds], Result], *, optimized: bool = False) -> Result:
    """What is made of a session and of the weights that it is to be fed with.

    Raises:
        OnnxpressError: ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    options = session_options(ours="onnxpress" in {entry.domain for entry in model.proto.opset_import})
    options.enable_cpu_mem_arena = False
    if not optimized:
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


def _trim() -> None:
    """Give the memory of weights that were read back to the system, where the C library keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run(session: Any, feeds: Feeds, names: Sequence[str]) -> Outputs:
    try:
        outputs: Outputs = session.run(names, feeds)
    except Exception as error:  # ONNX Runtime raises a type for each of its status codes
        raise OnnxpressError(f"ONNX Runtime cannot run it: {' '.join(str(error).split())[:300]}") from error
    return outputs
