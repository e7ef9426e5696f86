"""Which values a recipe's keys take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .errors import SettingError, UsageError, suggestion
from .origin import Origin
from .quantization.schemes import ACTIVATION_FORMATS, FORMAT_ALIASES, SCALE_TYPES, SCHEMES, WEIGHT_FORMATS

BLOCK_SIZES = (0, 16, 32, 64, 128, 256)
FORMS = ("qoperator", "qdq", "onnxpress")
ACCURACY_LEVELS = (0, 1, 2, 3, 4)
RANGE_METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")
ACTIVATION_TYPES = ("uint8", "int8")
TARGETS = ("this", "any")
COVERAGES = ("standard", "extended")
CRITERIA = ("magnitude", "wanda", "obs")

_CHOICES: dict[str, tuple[object, ...]] = {
    "scheme": tuple(SCHEMES),
    "block_size": BLOCK_SIZES,
    "scale_type": SCALE_TYPES,
    "form": FORMS,
    "accuracy_level": ACCURACY_LEVELS,
    "range_method": RANGE_METHODS,
    "activation_type": ACTIVATION_TYPES,
    "weight_format": WEIGHT_FORMATS,
    "activation_format": ACTIVATION_FORMATS,
    "target": TARGETS,
    "coverage": COVERAGES,
    "dtype": ("int8", "float32"),
    "criterion": CRITERIA,
    "allocation": ("uniform", "sensitivity"),
    "activations": ("dynamic", "static"),
}
_FORMATS = ("weight_format", "activation_format")
_TYPES: dict[str, type] = {
    "symmetric": bool,
    "search": bool,
    "embeddings": bool,
    "clean_up": bool,
    "check": bool,
    "keep_float": bool,
    "per_channel": bool,
    "reduce_range": bool,
    "equalize": bool,
    "smooth": bool,
    "correct_bias": bool,
    "compensate": bool,
    "restore_moments": bool,
    "first_and_last": bool,
    "only_if_faster": bool,
    "fuse": bool,
    "metric": str,
    "sequential": bool,
    "prune": bool,
    "mask": str,
    "match": str,
    "op_type": str,
}
_MOST_ROWS = 1 << 16
_NUMBERS = {"percentile": (50.0, 100.0), "max_drop": (0.0, 0.99)}


def checked(kind: type, values: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """The values with every key known and every value of its type; lists become tuples.

    Raises:
        UsageError: A key is unknown, or a value of another type or not among the choices.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    result = {}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f'{origin.text}: unknown key "{key}"; {suggestion(key, known, "known keys:")}')
        with origin.stated():
            result[key] = _checked_value(key, value)
    return result


def _checked_value(key: str, value: object) -> object:
    if key in _CHOICES:
        choices = _CHOICES[key]
        word = value if isinstance(value, str) else ""
        meant = FORMAT_ALIASES.get(word, value) if key in _FORMATS else value
        if isinstance(value, bool) or meant not in choices:
            raise SettingError(key, value, f"; {suggestion(word, [str(c) for c in choices], 'must be one of')}")
    elif key in _NUMBERS:
        low, high = _NUMBERS[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
            raise SettingError(key, value, f", must be a number above {low:g} and up to {high:g}")
        return float(value)
    elif key == "sparsity":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise SettingError(key, value, ", must be a number from 0 up to but not 1, such as 0.8")
        return float(value)
    elif key == "block":
        from .sparsity.blocks import Block

        if not isinstance(value, str):
            raise SettingError(key, value, ', must be a string of inputs x outputs, such as "4x4"')
        return str(Block.parse(value))
    elif key == "expect_m":
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_ROWS:
            raise SettingError(key, value, f", must be a whole number from 1 to {_MOST_ROWS}")
    elif key in _TYPES:
        if not isinstance(value, _TYPES[key]):
            expected = {bool: "true or false", str: "a string"}[_TYPES[key]]
            raise SettingError(key, value, f", must be {expected}")
    elif key in ("include", "exclude"):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise SettingError(key, value, ", must be a list of strings")
        return tuple(value)
    return value
