"""What stands between a conversion and a wrong model: checks of what is made, and runs beside the original.

    original: check, run -> clean-up: check, run, without the steps that change numbers -> conversion: check
          -> write -> result: run, and tell how far its outputs are

The original runs once, for both comparisons. Checks cost little; runs, in a process of their own, cost what a model
weighs, so beyond 500 MB of weights they are made only where the recipe asks for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..errors import OnnxpressError, UsageError, option
from ..passes.clean_up import STEPS, CleanUp, put_in_place
from ..planning.output_error import OutputError
from ..planning.report import size_text
from ..runtime.feeds import Feeds
from .checker import Bare, bare, new_complaint, standing
from .reference import Reference, run_original
from .session_process import SessionProcess

MOST_WEIGHTS = 500_000_000
"""Bytes of weights up to which models are run without being asked to."""
_MOST_LEFT_OUT = 3  # steps of a clean-up, beyond which there is none
_SHOWN = 3
_FAR = 20.0  # dB, of an output that may worry a reader


class Gate:
    """Watches over the conversion of one model.

    Attributes:
        warnings: What the user should know.
        errors: The outputs of the result beside the original's; none where it was not run.
    """

    def __init__(
        self,
        model: ir.Model,
        check: bool | None,
        sample: Callable[[], Feeds | None] = lambda: None,
        dims: Mapping[str, int] | None = None,
    ) -> None:
        """Look at a model before anything of it changes.

        Args:
            model: The original, whose nodes have names.
            check: Whether to run models; None does up to 500 MB of weights.
            sample: Gives inputs of the model where there are some, else random ones are made.
            dims: Open sizes of random inputs, as in `random_feeds`.

        Raises:
            UsageError: No input has a size of that name, or sizes are given and nothing runs.
        """
        self.warnings: list[str] = []
        self._process = SessionProcess()
        original = bare(model)
        self._standing = standing(original)
        self._reference: Reference | None = None
        self._not_run = ""
        self.errors: tuple[OutputError, ...] = ()
        self._left_out: list[str] = []
        size = sum(tensor.nbytes for tensor in original.weights.values())
        if check is False:
            self._not_run = "not by a run: switched off"
        elif check is None and size > MOST_WEIGHTS:
            self._not_run = f"not by a run, {size_text(size)} of weights: {option('check')} makes it"
        if self._not_run and dims:
            raise UsageError(
                f"{option('dim')}: sizes of the run that checks the model, and it is checked {self._not_run}"
            )
        if not self._not_run:
            given = sample()
            try:
                self._reference = run_original(self._process, model, original, given, dims)
            except UsageError:
                raise
            except OnnxpressError as error:
                self._not_run = f"not by a run: {error}"
        if self._reference is None:
            self.rest()

    def clean_up(self, model: ir.Model) -> None:
        """CleanUp, in place, but for steps that change what the model computes, which are named in a warning."""
        try:
            self._clean_up(model)
        finally:
            self.rest()

    def _clean_up(self, model: ir.Model) -> None:
        without: list[str] = []
        while (problem := self._try(model, without)) is not None:
            guilty = self._guilty(model, without) if len(without) < _MOST_LEFT_OUT else None
            if guilty is None:
                self.warnings.append(f"clean-up was put aside: {problem}")
                return
            without.append(guilty)
            self.warnings.append(f"clean-up went without {guilty}: {problem}")

    def rest(self) -> None:
        """Free what runs take of memory; `clean_up` does so when it is done."""
        self._process.release()

    def _guilty(self, model: ir.Model, without: Sequence[str]) -> str | None:
        """The first step with which something is wrong, where nothing is without it and those behind it."""
        low, high = 0, len(STEPS)  # right with the first `low` steps, wrong with the first `high`
        while high - low > 1:
            middle = (low + high) // 2
            if self._cleaned(model, {*without, *STEPS[middle:]})[1] is None:
                low = middle
            else:
                high = middle
        return STEPS[low] if self._cleaned(model, {*without, *STEPS[low:]})[1] is None else None

    def _try(self, model: ir.Model, without: Collection[str]) -> str | None:
        """Clean up where that is right; else what is wrong."""
        cleaned, problem = self._cleaned(model, without)
        if problem is None:
            self.warnings += self._left_out
            put_in_place(model, cleaned)
        return problem

    def _cleaned(self, model: ir.Model, without: Collection[str]) -> tuple[ir.Model, str | None]:
        """A cleaned copy, and what is wrong with it."""
        clean_up = CleanUp(without)
        try:
            cleaned, _ = clean_up.cleaned(model)
        except Exception as error:  # of libraries, around the steps, which it looks after itself
            return model, f"it fails with {type(error).__name__}: {' '.join(str(error).split())}"
        self._left_out = clean_up.warnings
        made = bare(cleaned)
        if (complaint := new_complaint(self._standing, made)) is not None:
            return cleaned, f"the check refuses what it makes: {complaint.text}"
        return cleaned, None if self._reference is None else self._difference(model, made, self._reference)

    def _difference(self, model: ir.Model, made: Bare, reference: Reference) -> str | None:
        """What a cleaned model computes otherwise than the original does."""
        try:
            text = reference.difference(made)
        except OnnxpressError as error:
            return f"what it makes does not run: {error}"
        if text is not None and reference.is_steep(bare(model)):
            return None
        return text and f"{text} on {reference.on}"

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
                f"float with {option('exclude')}, and report this as a fault of onnxpress"
            )
        self.warnings.append(f"the model states other types or shapes than ONNX infers: {complaint.text}")

    def expect_result(self) -> None:
        """Start what is to run the result, while it is written."""
        if self._reference is not None:
            with suppress(OnnxpressError):  # which the run tells
                self._process.start()

    def compare_result(self, path: Path, *, ours: bool, last: str | None = None) -> None:
        """Run the result beside the original, and warn where little is left of an output.

        Args:
            path: The result.
            ours: Whether it has operators of ours.
            last: The output of which it has the last of the second axis alone.
        """
        if self._reference is None:
            return
        try:
            self.errors = tuple(self._reference.errors(path, ours=ours, last=last))
        except OnnxpressError as error:
            self.warnings.append(f"the result does not run here: {error}")
            return
        finally:
            self.rest()
        for output in self.errors:
            if output.is_ruined:
                self.warnings.append(f"little is left of output {output}, beside float on {self._reference.on}")

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What was checked, and how far the outputs are."""
        how = self._not_run if self._reference is None else f"by a run on {self._reference.on}"
        by = "names and nodes" if self._standing.plain else "names (ONNX's checker refuses the original)"
        rows = [("checked", f"{by}; {how}")]
        worst = sorted(self.errors, key=_rank)
        for index, error in enumerate(worst[:_SHOWN]):
            rows.append(("outputs" if index == 0 else "", str(error)))
        if len(worst) > _SHOWN:
            rows.append(("", f"and {len(worst) - _SHOWN} nearer to float"))
        if self._reference is not None and not self._reference.on_data and any(_is_far(error) for error in worst):
            rows.append(("", "real inputs are often served better: evaluate says how well a task still goes"))
        return rows

    @property
    def details(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "by_checker": self._standing.plain,
            "run_on": None if self._reference is None else self._reference.on,
            "not_run": self._not_run or None,
            "outputs": [dataclasses.asdict(error) for error in self.errors],
        }


def _is_far(error: OutputError) -> bool:
    return error.sqnr is not None and error.sqnr < _FAR


def _rank(error: OutputError) -> tuple[bool, float]:
    """Those of another length first, then those that are farthest."""
    value = error.sqnr if error.equal is None else 100 * error.equal
    return error.shapes is None, 0.0 if value is None else value
