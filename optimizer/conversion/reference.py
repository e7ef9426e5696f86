"""What a model computes before it is changed, to hold what is made of it against.

The model runs once, on data or on random inputs, without optimizations: then none of the runtime's own is mistaken for
a fault, and weights, which are fed like inputs, are neither copied nor packed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import OnnxpressError
from ..evaluation.outputs import beyond_rounding, output_errors
from ..planning.output_error import OutputError
from ..runtime.feeds import Feeds, is_float, random_feeds
from ..runtime.token_limits import token_limits
from .checker import Bare
from .session_process import Loaded, SessionProcess

_SIZES: tuple[tuple[Mapping[str, int], int], ...] = (
    ({"batch": 2, "sequence": 16, "past": 0}, 64),
    ({"batch": 1, "sequence": 16, "past": 0}, 48),
    ({"batch": 1, "sequence": 16}, 224),
    ({}, 224),
    *(({"batch": 1}, side) for side in (256, 336, 384)),  # which position embeddings of vision transformers fix
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


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the original computes.

    Attributes:
        on_data: Whether the inputs are calibration data, or random.
        names: Of the outputs.
        feeds: Sets of inputs; a second one overrides floats that inputs have by default.
        wanted: The outputs on each.
        process: Where models run.
    """

    on_data: bool
    names: list[str]
    feeds: list[Feeds]
    wanted: list[Outputs]
    process: SessionProcess

    @property
    def on(self) -> str:
        """What the inputs are, for a person."""
        return "calibration data" if self.on_data else "random inputs"

    def difference(self, model: Bare) -> str | None:
        """What a model computes otherwise, beyond rounding, that should compute the same.

        Raises:
            OnnxpressError: ONNX Runtime cannot run it.
        """
        _open(self.process, model, "the model")
        return self._difference()

    def is_steep(self, original: Bare) -> bool:
        """Whether rounding alone changes what the original computes: a step of its inputs, or another order of sums."""
        rng = np.random.default_rng(1)
        moved = [
            {name: _moved(array, rng) if _is_floats(array) else array for name, array in feeds.items()}
            for feeds in self.feeds
        ]
        beside = dataclasses.replace(self, feeds=moved)
        try:
            _open(self.process, original, "the original")
            if beside._difference() is not None:
                return True
            _open(self.process, original, "the original", optimized=True)
            return self._difference() is not None
        except OnnxpressError:
            return True

    def errors(self, path: Path, *, ours: bool, last: str | None = None) -> list[OutputError]:
        """How far the outputs of a converted model are, run as its users will.

        Args:
            path: The model.
            ours: Whether it has operators of ours.
            last: The output of which it has the last of the second axis alone.

        Raises:
            OnnxpressError: ONNX Runtime cannot load or run it.
        """
        self.process.open(path, str(path), ours=ours)
        outputs = self.process.run(self.names, self.feeds[0])
        wanted = (
            array[:, -1:] if name == last else array for name, array in zip(self.names, self.wanted[0], strict=True)
        )
        return output_errors(self.names, list(wanted), outputs)

    def _difference(self) -> str | None:
        """Of what the model that is open now computes."""
        found = (self.process.run(self.names, feeds) for feeds in self.feeds)
        texts = (beyond_rounding(self.names, *pair) for pair in zip(self.wanted, found, strict=True))
        return next((text for text in texts if text is not None), None)


def run_original(
    process: SessionProcess, model: ir.Model, bare: Bare, sample: Feeds | None, dims: Mapping[str, int] | None = None
) -> Reference:
    """What a model computes on a sample, or on random inputs.

    Args:
        process: Where to run it.
        model: The model.
        bare: The same without weights.
        sample: Its inputs; None makes some up.
        dims: Open sizes of those that are made up, as in `random_feeds`.

    Raises:
        UsageError: No input has a size of that name.
        OnnxpressError: Its inputs cannot be made up, ONNX Runtime cannot run it or dies of it, or it draws random
            numbers.
    """
    loaded = _open(process, bare, "the original")
    names = loaded.outputs
    feeds, wanted = _that_runs(process, loaded, model, sample, dims or {})
    if _draws(model) and beyond_rounding(names, wanted, process.run(names, feeds)) is not None:
        raise OnnxpressError("the original draws random numbers")
    found = Reference(sample is not None, names, [feeds], [wanted], process)
    if others := _overridden(loaded, model):
        others = {**feeds, **others}
        with suppress(OnnxpressError):  # its defaults may be the only numbers that it bears
            found.wanted.append(process.run(names, others))
            found.feeds.append(others)
    return found


def _that_runs(
    process: SessionProcess, loaded: Loaded, model: ir.Model, sample: Feeds | None, dims: Mapping[str, int]
) -> tuple[Feeds, Outputs]:
    refused: OnnxpressError | None = None
    for feeds in _made(model, loaded.inputs, dims) if sample is None else [sample]:
        try:
            return feeds, process.run(loaded.outputs, feeds)
        except OnnxpressError as error:
            refused = refused or error
            if not process.is_alive:
                raise
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


def _overridden(loaded: Loaded, model: ir.Model) -> Feeds:
    """Other numbers for the floats that inputs have by default."""
    found = {}
    for name in loaded.overridable:
        tensor = model.graph.initializers[name].const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.dtype.itemsize >= 2:
            array = tensor.numpy()
            noise = np.random.default_rng(0).uniform(0.5, 1.5, array.shape)
            found[name] = np.asarray(array * noise + 0.1 * noise, array.dtype)
    return found


def _is_floats(value: object) -> bool:
    return isinstance(value, np.ndarray) and is_float(value.dtype)


def _moved(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(array * (1 + _STEP * rng.standard_normal(array.shape)), array.dtype)


def _open(process: SessionProcess, model: Bare, name: str, *, optimized: bool = False) -> Loaded:
    """Raises OnnxpressError where ONNX Runtime refuses the model, or dies of it."""
    ours = "onnxpress" in {entry.domain for entry in model.proto.opset_import}
    data = model.proto.SerializeToString()
    return process.open(data, name, ours=ours, optimized=optimized, weights=model.weights)
