"""Where calibration data or statistics come from.

A request is checked before anything is read, so what reads is imported where it is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OnnxpressError, SettingsError, UsageError, named_alone, option
from .files import TOKENIZER, check_source, may_be_text, require_tokenizers, tokenizer_file
from .image_recipe import recipe_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from .data import Data
    from .statistics import Statistics

SAMPLES = 128
"""Samples that are taken where nobody says."""


@named_alone
@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a conversion learns the ranges of tensors from.

    Attributes:
        data: As `open_data` takes it: a file, a folder, an iterable, a callable or "module:function".
        statistics: In place of data, what a calibration collected before, or its file.
        samples: Most samples to take; 128 by default.
        batch: Samples a run, where the data has them one by one.
        images: How images become inputs.
        tokenizer: tokenizer.json for text, or its folder.
        length: Tokens of each sample of text; 128 of lines and 512 of windows by default.
        checkpoint: A folder for what has been learned so far, from which the same conversion goes on after an
            interruption: of weights alone, and where lengths are searched.
    """

    data: str | Path | Iterable[Any] | Callable[[], Iterable[Any]] | None = None
    statistics: str | Path | Statistics | None = None
    samples: int | None = None
    batch: int | None = None
    images: str | Path | Any = None
    tokenizer: str | Path | None = None
    length: int | None = None
    checkpoint: str | Path | None = None

    @property
    def is_given(self) -> bool:
        """Whether somebody says anything of data, apart from where to keep what is learned from it."""
        return dataclasses.replace(self, checkpoint=None) != Calibration()

    @property
    def text(self) -> Path | None:
        """The file of its data, where that may be text."""
        return Path(self.data) if isinstance(self.data, str | Path) and may_be_text(Path(self.data)) else None

    def is_there(self, name: str | None) -> bool:
        """Whether there is something to open, for a model of this name in the catalogue or of none."""
        return self.data is not None or self.statistics is not None or name is not None

    def check(self, name: str | None, *, or_statistics: bool = True) -> None:
        """Refuse what cannot be opened whatever the model is; of which `name` is as in `is_there`.

        Args:
            name: Of the model in the catalogue.
            or_statistics: Whether statistics do in place of data.

        Raises:
            UsageError: Nothing is given, or data and statistics both.
        """
        if self.data is not None and self.statistics is not None:
            raise SettingsError(["data", "statistics"], ": give one of them, not both")
        if not self.is_there(name):
            other = f", or {option('statistics')}" if or_statistics else ""
            raise UsageError(
                f"this has to see data: give {option('calibration')} (an .npz file, a folder of .npy files or of "
                f"images, text with {option('tokenizer')}, or module:function){other}"
            )

    def check_files(self) -> None:
        """Refuse files and presets that are not there.

        Raises:
            UsageError: `images` means nothing.
            OnnxpressError: There is no such file, that of `images` cannot be read, or a package that reads text is
                not installed.
        """
        if self.images is not None:
            recipe_of(self.images)
        check_source(self.data)
        if self.text is not None:
            require_tokenizers()
        if isinstance(self.statistics, str | Path) and not Path(self.statistics).exists():
            raise OnnxpressError(f"{self.statistics}: no such file")
        if self.tokenizer is not None:
            tokenizer_file(self.tokenizer)

    def open(self, model: ir.Model, name: str | None = None, path: Path | None = None) -> Data | Statistics:
        """The data, or the statistics.

        Args:
            model: Whose inputs the data has to fit.
            name: Of a model of the catalogue, which has data of its own.
            path: The model's file, beside which a tokenizer may lie.

        Raises:
            UsageError: As `check` and `check_files`.
            OnnxpressError: It cannot be read.
        """
        from .data import open_data
        from .inputs import inputs_of
        from .statistics import Statistics
        from .windows import predicts_tokens

        self.check(name)
        self.check_files()
        if self.statistics is not None:
            return self.statistics if isinstance(self.statistics, Statistics) else Statistics.load(self.statistics)
        samples, batch = self.samples or SAMPLES, self.batch or 1
        data: Any = self.data
        if data is None and name is not None:
            data = own_data(name, samples)
        tokenizer = self.tokenizer or tokenizer_beside(path, data)
        opened = open_data(
            data, inputs_of(model), samples=samples, batch=batch, images=self.images, tokenizer=tokenizer,
            length=self.length, decoder=predicts_tokens(model),
        )  # fmt: skip
        opened.checkpoint = None if self.checkpoint is None else Path(self.checkpoint)
        return opened


def own_data(name: str, samples: int = SAMPLES) -> Callable[[], Iterable[Any]]:
    """Data that a model of the catalogue brings."""

    def begin() -> Iterable[Any]:
        from onnxpress.models import calibration

        return calibration(name, samples)

    begin.__name__ = f"{name}'s own data"
    return begin


def tokenizer_beside(path: Path | None, data: object) -> Path | None:
    """The tokenizer.json beside a model, for text."""
    if path is None or not isinstance(data, str | Path) or not may_be_text(Path(data)):
        return None
    beside = path.with_name(TOKENIZER)
    return beside if beside.is_file() else None
