"""How many tokens each layer of an encoder hands on, from what a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import OnnxpressError, option
from ..settings.lengths import INPUT, lengths_of
from ..settings.recipe import Recipe

_DIGITS = 4


def lengths_for(recipe: Recipe, layers: int) -> tuple[float, ...] | None:
    """Those of a model of so many layers, of each but the last; None where the recipe wants none.

    Raises:
        OnnxpressError: The budget is less than the first layer takes.
    """
    if recipe.lengths not in (None, INPUT):
        return lengths_of(recipe.lengths or "")
    if recipe.length_budget is not None:
        return even_lengths(recipe.length_budget, layers)
    return (1.0,) * (layers - 1) if recipe.lengths == INPUT else None


def even_lengths(budget: float, layers: int) -> tuple[float, ...]:
    """The same share for all layers, so that tokens leave behind the first.

    Of MiniLM that loses far less than a like step behind each layer, at equal work: what goes early leaves the others
    undisturbed.

    Args:
        budget: The mean of what the layers read; the first reads all.
        layers: How many.

    Returns:
        What each layer but the last hands on, rounded to ten-thousandths.

    Raises:
        OnnxpressError: The first layer alone takes more.
    """
    if layers < 2:
        return ()
    length = round((budget * layers - 1) / (layers - 1), _DIGITS)
    if length <= 0:
        raise OnnxpressError(
            f"{option('length-budget')}: {budget:g} is too little: the first of {layers} layers reads all tokens, "
            f"which is {1 / layers:.2g} of the work"
        )
    return (length,) * (layers - 1)


def work_of(lengths: Sequence[float], layers: int, tokens: int = 1) -> float:
    """The share of the tokens that layers read, of a text of so many; shares need no text."""
    read = [1.0]
    for length in (*lengths, *[1.0] * layers)[: layers - 1]:
        read.append(min(read[-1], length if length <= 1 else length / tokens))
    return sum(read) / layers


def lengths_text(lengths: Sequence[float]) -> str:
    """For a person: "90%, 75%, 64 tokens"."""
    return ", ".join(f"{length:.4g} tokens" if length > 1 else f"{100 * length:.4g}%" for length in lengths)
