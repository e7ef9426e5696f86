"""Tokens dropped between the layers of an encoder: what a recipe wants of a model, done and told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ..errors import OnnxpressError, option
from ..graph.matching import opset_of
from ..passes.drop_tokens import DropTokens, dropping_of
from ..passes.recognise_norms import OPSET
from ..planning.plan import Decision
from ..planning.token_lengths import lengths_for, lengths_text, work_of
from ..settings.lengths import INPUT
from ..settings.recipe import Recipe

_PADDING = "leaves first, whatever the lengths: outputs of tokens that the mask leaves out are others than without"


def drops_tokens(recipe: Recipe) -> bool:
    """Whether a recipe wants it."""
    return recipe.lengths is not None or recipe.length_budget is not None


class Dropping:
    """What becomes of one model.

    Attributes:
        layers: The attentions of the layers that hand on fewer tokens than they read.
        written_out: Those of them that became standard operators.
        rows: For a person, as in `ConversionResult`.
        details: For JSON.
    """

    def __init__(self, recipe: Recipe, attentions: Sequence[ir.Node], left: Mapping[str, str]) -> None:
        """Look for the layers; nothing changes.

        Args:
            recipe: What is wanted.
            attentions: Those that were recognised, in the order of the graph.
            left: Why others were not.

        Raises:
            OnnxpressError: The model has no such layers, or they cannot be had as the recipe says.
        """
        self.layers: list[ir.Node] = []
        self.written_out: list[ir.Node] = []
        self.rows: list[tuple[str, str]] = []
        self.details: dict[str, Any] = {}
        if not drops_tokens(recipe):
            return
        key = "length-budget" if recipe.lengths is None else "lengths"
        if not attentions:
            why = next(iter(left.values()), "the model has no self-attention to find layers by")
            raise OnnxpressError(f"{option(key)}: no attention of an encoder is recognised: {why}")
        self._attentions, self._is_input = attentions, recipe.lengths == INPUT
        self._lengths = lengths_for(recipe, len(attentions)) or ()
        self.layers = dropping_of(attentions, self._lengths, self._is_input)

    def drop(
        self, model: ir.Model, whole: Mapping[ir.Node, ir.Node], decisions: Sequence[Decision]
    ) -> list[Decision]:  # fmt: skip
        """Change the model.

        Args:
            model: The model.
            whole: Layers that are one operator by now, by the attention of each.
            decisions: On all products.

        Returns:
            The decisions, those on attentions that are written out being on their products now.
        """
        if not self.layers:
            return list(decisions)
        if opset_of(model) < OPSET:
            raise OnnxpressError(f"{option('lengths')}: the opset is below {OPSET} and cannot be raised")
        drop = DropTokens(self._lengths, [whole.get(node, node) for node in self._attentions], self._is_input)
        drop(model)
        self.written_out = list(drop.products)
        self._tell(len(self._attentions), is_apart=len(whole) < len(self._attentions))
        return [
            dataclasses.replace(each, node=drop.products[each.node]) if each.node in drop.products else each
            for each in decisions
        ]

    def _tell(self, layers: int, is_apart: bool) -> None:
        """Of so many layers; whether not all of them are one operator, which is told of padding elsewhere."""
        text = lengths_text(self._lengths)
        told = f"an input of the model, by default {text}" if self._is_input else f"layers hand on {text}"
        self.details = {"lengths": list(self._lengths)}
        if all(length <= 1 for length in self._lengths):
            work = work_of(self._lengths, layers)
            told += f"; {100 * work:.3g}% of the work on tokens"
            self.details["tokens_read"] = work
        self.rows = [("lengths", told)]
        if is_apart:
            self.rows.append(("padding", _PADDING))
        if self.written_out:
            self.rows.append(("", f"{len(self.written_out)} attentions are standard operators, for they drop tokens"))
