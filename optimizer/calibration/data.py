"""Calibration data: from wherever it comes, one checked set of inputs at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OnnxpressError, UsageError
from ..runtime.feeds import Feeds, in_width, is_float
from ..user_functions import load_function
from .arrays import array_samples
from .files import ARRAYS, check_source
from .inputs import Input, needed
from .variety import Variety

if TYPE_CHECKING:
    from .image_recipe import ImageRecipe

Source = str | Path | Iterable[Any] | Callable[[], Iterable[Any]]
_MOST_LENGTH = 1 << 20


class Data:
    """Sets of inputs that can be gone through again and again; floats of another width become those of the model.

    Attributes:
        name: What messages call the source.
        samples: The most samples to take, or None for all.
        seen: How many there were, once somebody went through all of them; else None.
        doubts: What is odd about them, once somebody did.
        checkpoint: A folder where those who learn from it for long keep what they have, to go on from there.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[Input],
        begin: Callable[[], Iterable[Any]],
        samples: int | None = None,
        batch: int = 1,
    ) -> None:
        """Wrap a source.

        Args:
            name: As the attribute.
            inputs: What the model takes; defaults count where a sample gives nothing else.
            begin: Starts going through the samples: mappings of arrays by input, or arrays where there is one input.
            samples: The most samples to take.
            batch: Samples that are given to the model together.
        """
        self.name, self.samples, self.batch = name, samples, batch
        self.seen: int | None = None
        self.doubts: list[str] = []
        self.checkpoint: Path | None = None
        self._inputs, self._begin = tuple(inputs), begin
        self._most = 0  # samples of one walk

    def __iter__(self) -> Iterator[Feeds]:
        """The batches.

        Raises:
            UsageError: A sample does not fit the inputs, samples cannot be put together, or there are none, or fewer
                than before.
            OnnxpressError: The source cannot be read.
        """
        batch: list[Feeds] = []
        count, variety = 0, Variety()
        for count, sample in enumerate(itertools.islice(self._begin(), self.samples), 1):
            batch.append(self._checked(sample, count - 1))
            self._most = max(self._most, count)
            if self.seen is None:
                variety.see(batch[-1])
            if len(batch) == self.batch:
                yield self._together(batch, count - len(batch))
                batch = []
        if batch:
            yield self._together(batch, count - len(batch))
        if count < self._most:
            raise UsageError(
                f"{self.name}: gave {self._most} samples and, when asked for them again, {count or 'none'}; what can "
                "be gone through only once has to be made anew each time"
            )
        if count == 0:
            raise UsageError(f"{self.name}: holds no samples; a calibration needs some")
        if self.seen is None:
            self.doubts = variety.doubts()
        self.seen = count

    def _checked(self, sample: Any, index: int) -> Feeds:
        where = f"{self.name}: sample {index}"
        if not isinstance(sample, Mapping):
            wanted = [entry.name for entry in needed(self._inputs)]
            if len(wanted) != 1 or isinstance(sample, tuple | list):
                names = ", ".join(wanted)
                raise UsageError(f"{where}: is a {type(sample).__name__}; give a dict of arrays by input: {names}")
            sample = {wanted[0]: sample}
        expected = [entry.name for entry in self._inputs]
        if missing := [entry.name for entry in needed(self._inputs) if entry.name not in sample]:
            raise UsageError(f"{where}: lacks input '{missing[0]}'; it has {', '.join(map(str, sample)) or 'nothing'}")
        if unknown := [str(name) for name in sample if name not in expected]:
            raise UsageError(f"{where}: '{unknown[0]}' is no input of the model, which takes {', '.join(expected)}")
        given = [entry for entry in self._inputs if entry.name in sample]
        feeds: Feeds = {}
        for entry in given:
            value = sample[entry.name]
            feeds[entry.name] = value if entry.kind else in_width(np.asarray(value), entry.dtype)
            if not entry.kind:
                check(feeds[entry.name], entry, f"{where}: input '{entry.name}'")
        return feeds

    def _together(self, batch: list[Feeds], first: int) -> Feeds:
        if self.batch == 1:
            return batch[0]
        joined = {
            entry.name: self._joined([feeds[entry.name] for feeds in batch], entry, first)
            for entry in needed(self._inputs)
        }
        return {**joined, **self._shared(batch, first)}

    def _shared(self, batch: list[Feeds], first: int) -> Feeds:
        """What takes the place of defaults, in all samples of a batch alike."""
        names = [entry.name for entry in self._inputs if entry.has_default]
        for name in names:
            given = [feeds[name] for feeds in batch if name in feeds]
            if len(given) not in (0, len(batch)) or not all(np.array_equal(array, given[0]) for array in given):
                raise UsageError(
                    f"{self.name}: input '{name}', which has a default, differs in samples {first} to "
                    f"{first + len(batch) - 1}; use a batch of 1"
                )
        return {name: batch[0][name] for name in names if name in batch[0]}

    def _joined(self, arrays: list[np.ndarray], entry: Input, first: int) -> np.ndarray:
        where = f"{self.name}: input '{entry.name}'"
        if entry.kind:
            raise UsageError(f"{where}: is no tensor ({entry.kind}); use a batch of 1")
        if entry.shape in ((), (1,)):
            for index, array in enumerate(arrays):
                if array != arrays[0]:
                    raise UsageError(f"{where}: samples {first} and {first + index} differ; use a batch of 1")
            return arrays[0]
        if not entry.has_free_batch:
            size = entry.shape[0] if entry.shape else None
            raise UsageError(f"{where}: its leading size is fixed at {size}; use a batch of 1")
        for index, array in enumerate(arrays):
            if array.shape[1:] != arrays[0].shape[1:]:
                raise UsageError(
                    f"{where}: samples {first} and {first + index} have the shapes {list(arrays[0].shape)} and "
                    f"{list(array.shape)}, which make no batch; use a batch of 1, or pad them"
                )
        return np.concatenate(arrays)


def check(array: np.ndarray, entry: Input, where: str) -> None:
    """Refuse an array that an input does not take.

    Raises:
        UsageError: Type, rank or a fixed size is another, or it holds NaN or infinity.
    """
    if array.dtype != entry.dtype and not (entry.dtype == object and array.dtype.kind in "US"):
        raise UsageError(f"{where}: is {array.dtype}, the model takes {entry.dtype}")
    fits = entry.shape is None or (
        array.ndim == len(entry.shape)
        and all(not isinstance(size, int) or size == have for size, have in zip(entry.shape, array.shape, strict=True))
    )
    if not fits and entry.shape is not None:
        advice = "; samples lie along a first axis" if array.ndim + 1 == len(entry.shape) else ""
        raise UsageError(f"{where}: has shape {list(array.shape)}, the model takes {list(entry.shape)}{advice}")
    if is_float(array.dtype) and not np.isfinite(array).all():
        raise UsageError(f"{where}: holds NaN or infinity as {array.dtype}; remove the sample")


def open_data(
    source: Source,
    inputs: Sequence[Input],
    *,
    samples: int | None = None,
    batch: int = 1,
    images: str | Path | ImageRecipe | None = None,
    tokenizer: str | Path | None = None,
    length: int | None = None,
    decoder: bool = False,
) -> Data:
    """Calibration data from any of the sources there are.

    Args:
        source: An .npz or .npy file or a folder of them (see `arrays.py`), a folder of images, a text file (see
            `text.py`), "module:function", a function without arguments that returns an iterable, or an iterable of
            samples: dicts of arrays by input, or arrays where the model has one input. An iterator, which can be gone
            through only once, is read into memory, `samples` of it where that is given; so is one that a function
            returns again and again.
        inputs: What the model takes, from `inputs_of`.
        samples: The most samples to take; all by default. Images are taken evenly from the sorted files, whose
            folders are often classes, and so are windows of a text; all else from the beginning.
        batch: Samples that are given to the model together; their leading axes are joined.
        images: How images become inputs: a preset's name, a TOML file or an `ImageRecipe`.
        tokenizer: The tokenizer.json for text, or its folder.
        length: Tokens of each sample of text; the model's where that is fixed. By default 128 of a line, which is
            padded or cut, and 512 of a window.
        decoder: Whether the model predicts tokens, so that text is cut into windows; one that takes a past does.

    Raises:
        UsageError: The source is of no known kind, lacks what it needs, or a number makes no sense.
        OnnxpressError: There is no such file, or it cannot be read.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"samples is {samples}, must be at least 1")
    if batch < 1:
        raise UsageError(f"batch is {batch}, must be at least 1")
    if length is not None and not 1 <= length <= _MOST_LENGTH:
        raise UsageError(f"length is {length}, must be from 1 to {_MOST_LENGTH}")
    if not isinstance(source, str | Path):
        return _of_objects(source, inputs, samples, batch)
    check_source(source)
    path = Path(source)
    if not path.exists():
        function = load_function(str(source))
        return Data(str(source), inputs, _called(function, str(source), samples), samples, batch)
    if others := [entry for entry in needed(inputs) if entry.kind]:
        raise UsageError(
            f"{source}: input '{others[0].name}' is no tensor ({others[0].kind}), which no file holds; give "
            "module:function, of samples that are dicts of inputs by name: a sequence as a list of arrays, a map as a "
            "dict, nothing as None"
        )
    if images is not None:
        from .images import image_samples

        begin, count = image_samples(path, needed(inputs), images, samples)
        return Data(str(source), inputs, begin, count, batch)
    if tokenizer is not None and path.suffix.lower() not in ARRAYS:
        from .text import text_samples

        begin = text_samples(path, needed(inputs), tokenizer, length, samples, decoder=decoder)
        return Data(str(source), inputs, begin, samples, batch)
    return Data(str(source), inputs, array_samples(path, inputs), samples, batch)


def _of_objects(source: Any, inputs: Sequence[Input], samples: int | None, batch: int) -> Data:
    if callable(source) and not isinstance(source, Iterable):
        name = getattr(source, "__name__", type(source).__name__)
        return Data(name, inputs, _called(source, name, samples), samples, batch)
    source = _walked(source)
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        raise UsageError(f"calibration data is a {type(source).__name__}; give an iterable of samples, or a path")
    if isinstance(source, Iterator):
        source = list(itertools.islice(source, samples))
        if not source:
            raise UsageError("calibration data: the iterator is used up, or has nothing to give; make a new one")
    known = len(source) if hasattr(source, "__len__") else None
    if known is not None:
        samples = min(known, samples or known)
    return Data("calibration data", inputs, lambda: source, samples, batch)


def _walked(source: Any) -> Any:
    """What only hands out samples by number, as data sets of PyTorch do, as an iterator; all else as it is."""
    if isinstance(source, Iterable) or not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        return source
    return (source[index] for index in range(len(source)))


def _called(function: Callable[[], Iterable[Any]], name: str, samples: int | None) -> Callable[[], Iterable[Any]]:
    kept: list[Any] = []  # of the only iterator that the function has

    def walk() -> Iterable[Any]:
        if kept:
            return kept
        found = _walked(function())
        if not isinstance(found, Iterable) or isinstance(found, Mapping):
            raise UsageError(f"{name}: returned a {type(found).__name__}, not an iterable of samples")
        if isinstance(found, Iterator) and function() is found:
            kept.extend(itertools.islice(found, samples))
            if not kept:
                raise UsageError(
                    f"{name}: returned an iterator that is used up or has nothing to give; return a new one"
                )
            return kept
        return found

    def begin() -> Iterator[Any]:
        try:
            yield from walk()
        except (OnnxpressError, MemoryError):
            raise
        except Exception as error:  # the user's code
            text = str(error).strip().splitlines()
            raise OnnxpressError(f"{name}: failed: {type(error).__name__}: {text[0] if text else ''}") from error

    return begin
