"""What a case shows: each way of converting it, run beside the original."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxpress.custom_ops import register
from onnxpress.optimizer import Calibration, OnnxpressError, Recipe, optimize
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.name_nodes import NameNodes
from onnxpress.optimizer.passes.preparation import prepare

from .case import Case, Feeds

LEVELS = {"none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL, "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}
_ROUNDING = {np.dtype(np.float32): 2e-4, np.dtype(np.float16): 2e-2, np.dtype(np.float64): 1e-5}
_EXACT = (  # what holds the weights of a case exactly
    {"scheme": "int4", "accuracy_level": 0},
    {"scheme": "int4", "accuracy_level": 0, "form": "qdq"},
    {"scheme": "int4", "accuracy_level": 0, "form": "onnxpress"},
    {"scheme": "int8", "accuracy_level": 0, "embeddings": True},
    {"scheme": "int8", "accuracy_level": 0, "form": "qdq", "scale_type": "float32"},
    {"scheme": "sparse", "prune": False, "dtype": "float32"},
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
)
_PERTURBED = 3e-6


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
        """What is wrong with this case; an original that ONNX Runtime refuses shows nothing."""
        self.seen["cases"] += 1
        wanted = [run(case.model, feeds, "none") for feeds in case.feeds]
        if isinstance(wanted[0], str):
            self.seen["refused by ONNX Runtime"] += 1
            return []
        expected = [(f, w) for f, w in zip(case.feeds, wanted, strict=True) if not isinstance(w, str)]
        if "clean-up" in steps:
            found = list(self._floats(case, expected, steps))
            if found:
                return found
        return list(self._converted(case, expected)) if "convert" in steps else []

    def _floats(self, case: Case, expected, steps: Sequence[str]) -> Iterator[Finding]:
        """Clean-up, and what prepares a model for static schemes, which change no numbers."""
        model = ir.from_proto(case.model)
        for step, rewrite in (("clean-up", _clean_up), ("prepare", prepare)):
            if step not in steps:
                continue
            try:
                rewrite(model)
                proto = ir.to_proto(model)
            except OnnxpressError:
                self.seen[f"{step} refused"] += 1
                return
            except Exception as error:
                yield Finding(case.seed, step, "raises", _raised(error))
                return
            self.seen[step] += 1
            found = list(self._same(case, step, proto, expected))
            yield from found
            if found:
                return

    def _same(self, case: Case, step: str, proto, expected, slack: float = 1.0) -> Iterator[Finding]:
        """Whether a model gives the same numbers at all levels of optimization where the original does."""
        for level in LEVELS:
            for number, (feeds, wanted) in enumerate(expected):
                where = f"{step}, optimizations: {level}{', overridden' if number else ''}"
                found = run(proto, feeds, level)
                if isinstance(found, str):
                    if isinstance(run(case.model, feeds, level), str):
                        continue  # nor does it take the original
                    yield Finding(case.seed, where, "does not load", found)
                    return
                detail = difference(wanted, found, slack)
                if detail and level == "all":
                    original = run(case.model, feeds, level)
                    if isinstance(original, str) or difference(wanted, original, slack):
                        continue  # its own optimizations change the original, too
                if detail and not _is_steep(case.model, feeds, wanted, slack):
                    yield Finding(case.seed, where, "differs", detail)
                    return

    def _converted(self, case: Case, expected) -> Iterator[Finding]:
        rng = np.random.default_rng(case.seed + 1)
        if rng.random() < 0.5:
            settings, least = _EXACT[int(rng.integers(len(_EXACT)))], None
        else:
            settings, least = _ROUGH[int(rng.integers(len(_ROUGH)))]
        # Clean-up is judged before; what only its faults would show here is seen without it.
        settings = {**settings, **({"clean_up": False} if rng.random() < 0.4 else {})}
        step = " ".join(f"{key}={value}" for key, value in settings.items())
        path = Path(self._folder.name) / "out.onnx"
        recipe = Recipe(**settings, check=None if rng.random() < 0.2 else False)
        static = recipe.family in ("static", "minifloat-static")
        samples = [case.feeds[0], *case.samples]
        try:
            optimize(ir.from_proto(case.model), recipe, path, calibration=Calibration(samples) if static else None)
        except OnnxpressError as error:
            self.seen["nothing to do" if "nothing to" in str(error) else f"refused: {_reason(error)}"] += 1
            return
        except Exception as error:
            yield Finding(case.seed, step, "raises", _raised(error))
            return
        self.seen[settings["scheme"]] += 1
        proto = onnx.load(path)
        if least is None:
            yield from self._same(case, step, proto, expected, 10.0)
            return
        for level in LEVELS:
            for number, (feeds, wanted) in enumerate(expected):
                where = f"{step}, optimizations: {level}{', overridden' if number else ''}"
                found = run(proto, feeds, level)
                if isinstance(found, str):
                    if "FLOAT8" in found or "float8" in found:
                        continue
                    yield Finding(case.seed, where, "does not load", found)
                    return
                if number and static:
                    continue  # ranges are those of the defaults
                detail = _rounded(wanted, found, least)
                if detail and not _is_rough(case.model, feeds, wanted, least):
                    yield Finding(case.seed, where, "rounds", detail)
                    return


def _reason(error: OnnxpressError) -> str:
    """Without the names of a case."""
    return re.sub(r"(tensor|output|node) [^ ,:]+|'[^']*'|-?[0-9.]+", "_", str(error))[:90]


def _clean_up(model: ir.Model) -> None:
    NameNodes()(model)
    CleanUp()(model)


def _raised(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]} at {place}"


def run(model: onnx.ModelProto, feeds: Feeds, level: str) -> list[np.ndarray] | str:
    """Outputs, or the error of ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVELS[level]
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # or it rounds activations
    if any(entry.domain == "onnxpress" for entry in model.opset_import):
        register(options)
    try:
        return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)
    except Exception as error:  # a type for each of its status codes
        return " ".join(str(error).split())[:300]


def difference(wanted, found, slack: float = 1.0) -> str | None:
    """In which output two runs differ by more than rounding."""
    for index, (a, b) in enumerate(zip(wanted, found, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index}: {a.dtype} {a.shape} became {b.dtype} {b.shape}"
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                return f"output {index}: {np.sum(a != b)} of {a.size} elements differ"
            continue
        same = (a == b) | (np.isnan(a) & np.isnan(b))
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
        if a.dtype.kind == "f" and np.isfinite(a).all():
            if not np.isfinite(b).all():
                return f"output {index}: infinite or NaN"
            if (got := decibels(a, b)) < least:
                return f"output {index}: {got:.1f} dB"
    return None


def _perturbed(feeds: Feeds, by: float) -> Feeds:
    rng = np.random.default_rng(7)
    return {
        name: (array * (1 + by * rng.standard_normal(array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in feeds.items()
    }


def _is_steep(model, feeds: Feeds, wanted, slack: float) -> bool:
    """Whether the original itself turns rounding of its inputs into such a difference."""
    size = 1e-3 if any(a.dtype == np.float16 for a in feeds.values()) else _PERTURBED
    other = run(model, _perturbed(feeds, size), "none")
    return isinstance(other, str) or difference(wanted, other, slack / 4) is not None


def _is_rough(model, feeds: Feeds, wanted, least: float) -> bool:
    """Whether a hundredth more or less of each input does as much to the original."""
    other = run(model, _perturbed(feeds, 0.02), "none")
    return isinstance(other, str) or _rounded(wanted, other, least + 6) is not None
