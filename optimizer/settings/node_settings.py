"""What a recipe says about one node."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from ..quantization.schemes import FORMAT_ALIASES, SCHEMES, WeightScheme, weight_scheme
from .origin import Origin


class Kept(str, enum.Enum):
    """Why the recipe keeps a node in float, worded for people."""

    NOT_INCLUDED = "not included by the recipe"
    EXCLUDED = "excluded by the recipe"
    OVERRIDDEN = "kept in float by an override of the recipe"

    def __str__(self) -> str:
        """The words, in every version of Python."""
        return self.value

    @property
    def is_asked_for(self) -> bool:
        """Whether the user names the node to be kept; others are not among those that were asked for."""
        return self is not Kept.NOT_INCLUDED


@dataclasses.dataclass(frozen=True)
class NodeSettings:
    """What the recipe says about one node."""

    weight: WeightScheme
    accuracy_level: int
    sparsity: float | None
    activation_format: str


def node_settings(values: Mapping[str, Any], origin: Origin) -> NodeSettings:
    """The settings of a node, defaults filled in.

    Raises:
        UsageError: They do not go together.
    """
    name, level = values["scheme"], values["accuracy_level"]
    keys = ("block_size", "symmetric", "search", "scale_type", "per_channel")
    with origin.stated():
        weight = weight_scheme(name, **{key: values[key] for key in keys})
    if level == 4 and not weight.integer:
        raise origin.error("accuracy_level", level, f", activations of int8, but {name} takes 0 to 3")
    if level is None:
        level = 4 if weight.integer else 3
    for key in ("weight_format", "activation_format"):
        if values[key] is not None and not SCHEMES[name].activations:
            raise origin.error(key, values[key], f", not read by scheme {name}")
    weight = dataclasses.replace(weight, rank=values["rank"])
    if (given := values["weight_format"]) is not None:
        weight = dataclasses.replace(weight, format=FORMAT_ALIASES.get(given, given))
    if SCHEMES[name].activations:  # the scheme's name tells of activations, too
        weight = dataclasses.replace(weight, name=weight.format)
    activations = values["activation_format"] or SCHEMES[name].activations
    return NodeSettings(weight, level, values["sparsity"], FORMAT_ALIASES.get(activations, activations))
