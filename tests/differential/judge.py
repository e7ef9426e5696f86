"""What a case shows: each way of converting it, run beside the original."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from itertools import chain
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
from onnxpress.optimizer import Calibration, OnnxpressError, Recipe, optimize
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.model_io.normalise import normalise
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.name_nodes import NameNodes
from onnxpress.optimizer.passes.preparation import prepare

from .case import Case, Feeds
from .runtimes import LEVELS, Model, Outputs

_ROUNDING = {np.dtype(np.float32): 2e-4, np.dtype(np.float16): 2e-2, np.dtype(np.float64): 1e-5}
_EXACT = (  # what holds the weights of a case exactly
    {"scheme": "int4", "accuracy_level": 0},
    {"scheme": "int4", "accuracy_level": 0, "form": "qdq"},
    {"scheme": "int4", "accuracy_level": 0, "form": "onnxpress"},
    {"scheme": "int8", "accuracy_level": 0, "embeddings": True},
    {"scheme": "int8", "accuracy_level": 0, "form": "qdq", "scale_type": "float32"},
    {"scheme": "sparse", "prune": False, "dtype": "float32"},
    {"scheme": "float"},
)
_ROUGH = (  # and least decibels of what rounds more
    ({"scheme": "int8-dynamic"}, 5.0),
    ({"scheme": "int8-static"}, 5.0),
    ({"scheme": "int8-static", "smooth": True, "equalize": True}, 5.0),
    ({"scheme": "fp8-dynamic"}, 5.0),
    ({"scheme": "fp8-static", "coverage": "extended"}, 5.0),
    ({"scheme": "nf4"}, 3.0),
    ({"scheme": "fp8"}, 10.0),
    ({"scheme": "mxfp8"}, 10.0),
    ({"scheme": "int6", "symmetric": True}, 8.0),
    ({"scheme": "sparse", "prune": False}, 8.0),
    ({"scheme": "sparse", "prune": False, "activations": "static"}, 5.0),
    ({"scheme": "int8", "method": "gptq,qronos,hqq", "accuracy_level": 0}, 8.0),
    ({"scheme": "int6", "method": "search", "form": "qdq"}, 5.0),
    ({"scheme": "fp8-e3m4-static", "first_and_last": True}, 5.0),
)
_CALIBRATED = 2.5  # times less often those are drawn that take as long as ten others
_CONVERSIONS = 3  # of a case: the original, clean-up and calibration data serve all of them
_THRESHOLDS = (
    ("onnxpress.optimizer.planning.plan", "MIN_ELEMENTS"),
    ("onnxpress.optimizer.planning.plan", "MIN_TABLE_ELEMENTS"),
)
_LEAST_WEIGHTS = 64
"""Where these end: else schemes leave most weights of models as small as these."""
_LEAST_JUDGED = 8  # numbers of an output, below which it is chance what rounding leaves of it
_PERTURBED = 3e-6
_LACKS = "MLFloat16 data type is not supported"
"""What ONNX Runtime says of an operator, in a run, that it computes in float32 where its neighbours are; conversions
see that it does not run and leave out what made it so."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What went wrong.

    Attributes:
        seed: Of the case.
        step: What was done to the model.
        kind: "raises", "does not load", "differs" or "rounds".
        detail: A line.
    """

    seed: int
    step: str
    kind: str
    detail: str


class Judge:
    """Judges cases and counts what it saw."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._folder = tempfile.TemporaryDirectory(prefix="differential-")

    def __call__(self, case: Case, steps: Sequence[str] = ("clean-up", "prepare", "convert")) -> list[Finding]:
        """What is wrong with this case; an original that nothing runs shows nothing."""
        self.seen["cases"] += 1
        with ExitStack() as stack:
            for module, name in _THRESHOLDS:
                stack.enter_context(mock.patch.object(import_module(module), name, _LEAST_WEIGHTS))
            return _Trial(case, steps, self.seen, Path(self._folder.name) / "out.onnx").findings()


class _Trial:
    """One case: its original, which runs once for each set of inputs, and what is made of it."""

    def __init__(self, case: Case, steps: Sequence[str], seen: Counter[str], path: Path) -> None:
        self._case, self._steps, self.seen, self._path = case, steps, seen, path
        self._bytes = case.model.SerializeToString()
        self._original = Model(case.model)

    def findings(self) -> list[Finding]:
        wanted = [self._original.run(feeds, "none") for feeds in self._case.feeds]
        if isinstance(wanted[0], str):
            self.seen["refused by ONNX Runtime"] += 1
            return list(self._by_reference())
        self._expected = [(f, w) for f, w in zip(self._case.feeds, wanted, strict=True) if not isinstance(w, str)]
        cleaned = self._bytes
        if "clean-up" in self._steps:
            model = self._read()
            found = list(self._floats(model, "clean-up", _clean_up))
            if found:
                return found
            cleaned = ir.to_proto(model).SerializeToString()
            if "prepare" in self._steps and (found := list(self._floats(model, "prepare", prepare, cleaned))):
                return found
        return list(self._converted(cleaned)) if "convert" in self._steps else []

    def _read(self, data: bytes | None = None) -> ir.Model:
        """A model of its own, in the form of all that is read: rewrites change the tensors that onnx-ir shares."""
        model = storage.of_proto(onnx.load_from_string(data or self._bytes))
        normalise(model, "case")
        return model

    def _by_reference(self) -> Iterator[Finding]:
        """Clean-up of what ONNX Runtime has no kernels for, or refuses with this shape or type."""
        feeds = self._case.feeds[0]
        wanted = self._original.refer(feeds)
        if isinstance(wanted, str) or "clean-up" not in self._steps:
            return
        self.seen["by the reference alone"] += 1
        model = self._read()
        yield from self._rewritten(model, "clean-up", _clean_up)
        cleaned = Model(ir.to_proto(model))
        found = cleaned.refer(feeds)
        if isinstance(found, str):
            found = cleaned.run(feeds, "none")
        if isinstance(found, str):
            if "not trusted" not in found:
                yield Finding(self._case.seed, "clean-up, by the reference", "does not load", found)
        elif detail := difference(wanted, found, 5.0):
            yield Finding(self._case.seed, "clean-up, by the reference", "differs", detail)

    def _rewritten(self, model: ir.Model, step: str, rewrite) -> Iterator[Finding]:
        """Rewrite a model; what that raises is a finding."""
        try:
            rewrite(model)
            ir.to_proto(model)
        except OnnxpressError:
            self.seen[f"{step} refused"] += 1
        except Exception as error:
            yield Finding(self._case.seed, step, "raises", _raised(error))
        else:
            self.seen[step] += 1

    def _floats(self, model: ir.Model, step: str, rewrite, judged: bytes = b"") -> Iterator[Finding]:
        """Clean-up, and what prepares a model for static schemes, which change no numbers."""
        before = self.seen[step]
        yield from self._rewritten(model, step, rewrite)
        if self.seen[step] > before and (made := ir.to_proto(model)).SerializeToString() != judged:
            yield from self._same(step, Model(made))

    def _same(self, step: str, made: Model, slack: float = 1.0) -> Iterator[Finding]:
        """Whether a model gives the same numbers at all levels of optimization where the original does."""
        for level in LEVELS:
            for number, (feeds, wanted) in enumerate(self._expected):
                where = f"{step}, optimizations: {level}{', overridden' if number else ''}"
                found = made.run(feeds, level)
                if isinstance(found, str):
                    if isinstance(self._original.run(feeds, level), str):
                        continue  # nor does it take the original
                    if self._is_lacking(found):
                        continue
                    yield Finding(self._case.seed, where, "does not load", found)
                    return
                detail = difference(wanted, found, slack)
                if detail and not self._is_excused(feeds, wanted, found, level, slack):
                    yield Finding(self._case.seed, where, "differs", detail)
                    return

    def _is_excused(self, feeds: Feeds, wanted: Outputs, found: Outputs, level: str, slack: float) -> bool:
        """Whether a difference tells nothing of what was made."""
        original = self._original.run(feeds, level)
        if isinstance(original, str) or difference(wanted, original, slack):
            return True  # its own optimizations change the original, too
        if self._is_steep(feeds, wanted, slack):
            return True
        second = self._original.refer(feeds)
        if isinstance(second, str) or difference(wanted, second, slack) is None or difference(second, found, slack):
            return False
        self.seen["ONNX Runtime is wrong on the original"] += 1
        return True

    def _converted(self, cleaned: bytes) -> Iterator[Finding]:
        case, rng = self._case, np.random.default_rng(self._case.seed + 1)
        ways = [*((settings, None) for settings in _EXACT), *_ROUGH]
        costs = np.array([_CALIBRATED if _has_data(settings) else 1.0 for settings, _ in _ROUGH])
        shares = np.concatenate([np.full(len(_EXACT), 0.5 / len(_EXACT)), 0.5 / costs / np.sum(1 / costs)])
        samples = [case.feeds[0], *case.samples]
        for index in rng.choice(len(ways), _CONVERSIONS, replace=False, p=shares):
            settings, least = ways[index]
            whole = (
                rng.random() < 0.15
            )  # as it is used; else clean-up, which was judged, is not done again, or not at all
            data = self._bytes if whole or rng.random() < 0.3 else cleaned
            recipe = Recipe(**settings, clean_up=whole, check=None if whole else False)
            learns, static = _has_data(settings), _is_static(settings)
            step = " ".join(f"{key}={value}" for key, value in {**settings, "clean_up": whole}.items())
            self.seen["conversions"] += 1
            try:
                calibration = Calibration(samples) if learns else None
                optimize(self._read(data), recipe, self._path, calibration=calibration)
            except OnnxpressError as error:
                self.seen["nothing to do" if "nothing to" in str(error) else f"refused: {_reason(error)}"] += 1
                continue
            except Exception as error:
                yield Finding(case.seed, step, "raises", _raised(error))
                return
            self.seen[settings["scheme"]] += 1
            made = Model(onnx.load(self._path))
            found = list(self._same(step, made, 10.0) if least is None else self._near(step, made, least, static))
            if found:
                yield from found
                return

    def _near(self, step: str, made: Model, least: float, static: bool) -> Iterator[Finding]:
        """Whether no more than rounding is left between a model and the original."""
        for level in LEVELS:
            for number, (feeds, wanted) in enumerate(self._expected):
                where = f"{step}, optimizations: {level}{', overridden' if number else ''}"
                found = made.run(feeds, level)
                if isinstance(found, str):
                    if "FLOAT8" in found or "float8" in found or self._is_lacking(found):
                        continue
                    yield Finding(self._case.seed, where, "does not load", found)
                    return
                if number and static:
                    continue  # ranges are those of the defaults
                detail = _rounded(wanted, found, least)
                if detail and not self._is_rough(feeds, wanted, least):
                    yield Finding(self._case.seed, where, "rounds", detail)
                    return

    def _is_lacking(self, error: str) -> bool:
        """Whether ONNX Runtime has no such kernel where it had taken another for the original."""
        if _LACKS not in error:
            return False
        self.seen["of a type that ONNX Runtime lacks"] += 1
        return True

    def _is_steep(self, feeds: Feeds, wanted: Outputs, slack: float) -> bool:
        """Whether the original itself turns rounding of its inputs into such a difference."""
        size = 1e-3 if any(a.dtype == np.float16 for a in feeds.values()) else _PERTURBED
        other = self._original.run(_perturbed(feeds, size), "none")
        return isinstance(other, str) or difference(wanted, other, slack / 4) is not None

    def _is_rough(self, feeds: Feeds, wanted: Outputs, least: float) -> bool:
        """Whether as much as formats round, of each input or of each weight, does the same to the original."""
        others = chain(
            (self._original.run(_perturbed(feeds, 0.04, seed), "none") for seed in range(4)),
            (Model(_with_other_weights(self._case.model, 0.04, seed)).run(feeds, "none") for seed in range(4)),
        )
        return any(isinstance(other, str) or _rounded(wanted, other, least + 6) for other in others)


def _reason(error: OnnxpressError) -> str:
    """Without the names of a case."""
    return re.sub(r"(tensor|output|node) [^ ,:]+|'[^']*'|-?[0-9.]+", "_", str(error))[:90]


def _has_data(settings: Mapping[str, object]) -> bool:
    return "method" in settings or _is_static(settings)


def _is_static(settings: Mapping[str, object]) -> bool:
    """Whether activations have scales of their own before they come."""
    return "static" in (settings.get("activations"), str(settings["scheme"]).rpartition("-")[2])


def _clean_up(model: ir.Model) -> None:
    NameNodes()(model)
    CleanUp()(model)


def _raised(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]} at {place}"


def difference(wanted, found, slack: float = 1.0) -> str | None:
    """In which output two runs differ by more than rounding."""
    for index, (a, b) in enumerate(zip(wanted, found, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index}: {a.dtype} {a.shape} became {b.dtype} {b.shape}"
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                return f"output {index}: {np.sum(a != b)} of {a.size} elements differ"
            continue
        same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.isinf(a) & np.isinf(b))  # a divisor of zero has any sign
        if same.all():
            continue
        x, y = a.astype(np.float64)[~same], b.astype(np.float64)[~same]
        if not (np.isfinite(x) & np.isfinite(y)).all():
            return f"output {index}: infinite or NaN where the other is not"
        finite = a[np.isfinite(a)].astype(np.float64)
        largest = max(np.abs(finite).max(initial=0), 1e-6)
        if (worst := np.abs(x - y).max() / largest) > slack * _ROUNDING[a.dtype]:
            return f"output {index}: off by {worst:.2g} of the largest"
    return None


def decibels(wanted: np.ndarray, found: np.ndarray) -> float:
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    noise = np.square(a - b).sum()
    return float(np.inf if noise == 0 else 10 * np.log10(max(np.square(a).sum(), 1e-12) / noise))


def _rounded(wanted, found, least: float) -> str | None:
    for index, (a, b) in enumerate(zip(wanted, found, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index}: {a.dtype} {a.shape} became {b.dtype} {b.shape}"
        if a.dtype.kind == "f" and np.isfinite(a).all() and a.size >= _LEAST_JUDGED:
            if not np.isfinite(b).all():
                return f"output {index}: infinite or NaN"
            if (got := decibels(a, b)) < least:
                return f"output {index}: {got:.1f} dB"
    return None


def _perturbed(feeds: Feeds, by: float, seed: int = 7) -> Feeds:
    rng = np.random.default_rng(seed)
    return {name: _noisy(array, by, rng) if array.dtype.kind == "f" else array for name, array in feeds.items()}


def _noisy(array: np.ndarray, by: float, rng: np.random.Generator) -> np.ndarray:
    return (array * (1 + by * rng.standard_normal(array.shape))).astype(array.dtype)


def _with_other_weights(model: onnx.ModelProto, by: float, seed: int) -> onnx.ModelProto:
    """A model whose weights have noise."""
    other, rng = onnx.ModelProto(), np.random.default_rng(seed)
    other.CopyFrom(model)
    for tensor in _constants(other.graph):
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.ndim > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(_noisy(array, by, rng), tensor.name))
    return other


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _constants(attribute.g)
            elif node.op_type == "Constant" and attribute.HasField("t"):
                yield attribute.t
