"""Standard clean-up before quantization: inlining, constant folding, dead code, and the common fusions.

Most of it comes from onnx-ir and onnxscript, each step behind guards for what it is wrong on. Large constants are never
folded, so that no weight is materialized but those that a BatchNormalization is folded into.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from ..graph.kept_names import inner_names_kept, replaced_names_kept
from ..graph.signature import signature_kept
from ..model_io.names import copy_of, names_kept_apart
from ..model_io.quiet_libraries import quiet_libraries
from .base import GraphPass
from .einsum_to_matmul import EinsumToMatMul
from .inline_functions import InlineFunctions
from .merge_equal import MergeEqual
from .remove_unused import outputs_kept, remove_unused, unread_kept
from .trusted_rules import TRUSTED, GuardedRule

_RULES = "rewrite rules"


class CleanUp(GraphPass):
    """Inline functions, fold constants, apply fusion rules, and remove what is double or unused.

    A step or a rule that raises an exception is left out, and the model is as if it had not been tried.

    Args:
        without: Steps and rules to leave out, by the names that `warnings` has for them.

    Attributes:
        warnings: What was left out, and why.
    """

    def __init__(self, without: Collection[str] = ()) -> None:
        self.without = set(without)
        self.warnings: list[str] = []

    def rewrite(self, model: ir.Model) -> bool:
        """Clean up in place, which gives the model another graph; whether anything changed."""
        cleaned, changed = self.cleaned(model)
        put_in_place(model, cleaned)
        return changed

    def cleaned(self, model: ir.Model) -> tuple[ir.Model, bool]:
        """A cleaned copy, and whether anything changed."""
        while True:
            copy = copy_of(model)
            try:
                with names_kept_apart(copy), quiet_libraries(), signature_kept(copy):
                    return copy, self._clean_up(copy)
            except _StepError as failure:
                self.without.add(failure.step)

    def _clean_up(self, model: ir.Model) -> bool:
        modified = False
        for name, step in _STEPS.items():
            if name in self.without:
                continue
            try:
                modified |= step(self, model)
            except Exception as error:  # libraries raise whatever they come across
                self._warn(name, f"{type(error).__name__}: {error}")
                raise _StepError(name) from error
        return modified

    def _inline(self, model: ir.Model) -> bool:
        with inner_names_kept(model):
            return InlineFunctions()(model).modified

    def _fold(self, model: ir.Model) -> bool:
        from .fold_constants import FoldConstants

        folding = FoldConstants()
        with inner_names_kept(model):
            changed: bool = folding(model).modified
        for op_type, error in folding.failed.items():
            self._warn(f"constant folding of {op_type}", error)
        return changed

    def _rewrite(self, model: ir.Model) -> bool:
        from onnxscript.rewriter import RewritePass
        from onnxscript.rewriter.rules import common as rules

        failed: dict[str, str] = {}
        # Rules come and go with versions of onnxscript.
        known = [
            GuardedRule(getattr(rules, trusted.name), trusted, failed)
            for trusted in TRUSTED
            if hasattr(rules, trusted.name) and trusted.name not in self.without
        ]
        if not known:
            return False
        with replaced_names_kept(model), outputs_kept(model), unread_kept(model):
            changed: bool = RewritePass(known)(model).modified  # type: ignore[arg-type]
        for name, error in failed.items():
            self._warn(name, error)
        return changed

    def _drop_functions(self, model: ir.Model) -> bool:
        from onnx_ir.passes.common import RemoveUnusedFunctionsPass

        return bool(RemoveUnusedFunctionsPass()(model).modified)  # type: ignore[no-untyped-call]

    def _drop_opsets(self, model: ir.Model) -> bool:
        from onnx_ir.passes.common import RemoveUnusedOpsetsPass

        return RemoveUnusedOpsetsPass()(model).modified

    def _warn(self, what: str, error: str) -> None:
        self.warnings.append(f"clean-up went without {what}: {' '.join(error.split())[:200]}")


class _StepError(Exception):
    """A step raised an exception, and has left the model half changed."""

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step


def put_in_place(model: ir.Model, other: ir.Model) -> None:
    """Give a model what is in another one."""
    model.graph = other.graph
    model.functions.clear()
    model.functions.update(other.functions)


_STEPS: dict[str, Callable[[CleanUp, ir.Model], bool]] = {
    "inlining": CleanUp._inline,
    "constant folding": CleanUp._fold,
    # No elimination of Identity: onnx-ir's fails where a branch of an If hands an outer value through.
    _RULES: CleanUp._rewrite,
    "products of Einsum": lambda _, model: EinsumToMatMul()(model).modified,
    "merging of equal nodes": lambda _, model: MergeEqual()(model).modified,
    "removal of unused nodes": lambda _, model: remove_unused(model),
    "removal of unused functions": CleanUp._drop_functions,
    "removal of unused opsets": CleanUp._drop_opsets,
}

STEPS = tuple(name for step in _STEPS for name in ([trusted.name for trusted in TRUSTED] if step == _RULES else [step]))
"""Names of what a clean-up consists of, in order; rules are applied together, again and again."""
