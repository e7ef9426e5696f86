"""What to do to a model: a recipe, read from TOML, the command line or Python, and stored in the output."""

from __future__ import annotations

import dataclasses
import glob
import sys
from collections.abc import Callable, Collection, Mapping
from copy import copy
from pathlib import Path
from typing import Any

from ..errors import OnnxpressError, UsageError, named_alone
from ..quantization.schemes import SCHEMES
from ..user_functions import written_as
from .every_setting import PER_NODE, Settings
from .families import keys_read_by
from .former import renamed, takes_former_names
from .groups import ROTATION, TRAINED, Judging, Training
from .lengths import INPUT, SEARCH
from .node_settings import Kept, NodeSettings, node_settings
from .origin import Origin
from .override import Override, matches
from .setting import checked, settings_of

_CHOOSING = frozenset({"sparsity", "criterion", "allocation", "sequential"})
"""Those of "sparse" that say which blocks go; where a mask or what is there says it, nobody reads them."""
_ON_TEXT = ("perplexity", "kl", "embeddings")
"""Metrics that read a text."""


@takes_former_names
@named_alone
@dataclasses.dataclass(frozen=True)
class Recipe(Settings):
    """How to convert a model.

    Attributes:
        overrides: Settings for some nodes; the last match wins, key by key.
    """

    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        """Check all values, and that the scheme reads those that differ from the defaults.

        Raises:
            UsageError: A value is of the wrong type or not among the choices, goes with none of the others, or is not
                read.
        """
        defaults = _defaults()
        given = {
            key: value
            for key in settings_of(Settings)
            # 1 is no True.
            if (value := getattr(self, key)) != defaults[key]
            or isinstance(value, bool) != isinstance(defaults[key], bool)
        }
        for key, value in checked(Settings, given, Origin()).items():
            object.__setattr__(self, key, value)
        if not all(isinstance(override, Override) for override in self.overrides):
            raise UsageError("recipe: overrides must be Override(...)s")
        object.__setattr__(self, "overrides", tuple(self.overrides))
        self._check(given, Origin())

    @property
    def family(self) -> str:
        """Of the scheme, see `Preset`."""
        return SCHEMES[self.scheme].family

    @property
    def is_minifloat(self) -> bool:
        """Whether activations become floating-point numbers of few bits."""
        return self.family.startswith("minifloat")

    @property
    def ranges(self) -> str:
        """The range method."""
        return self.range_method or ("minmax" if self.is_minifloat else "percentile")

    @property
    def formats(self) -> tuple[str, str]:
        """Of weights and activations of a scheme that rounds both to minifloats, where no override says another."""
        settings = node_settings(self._per_node(), Origin())
        return settings.weight.format, settings.activation_format

    @property
    def judged_by(self) -> str | Callable[[Any], float] | None:
        """The metric; None for the cosine of outputs."""
        return "kl" if self.metric is None and self.max_kl is not None else self.metric

    @property
    def max_loss(self) -> float | None:
        """The most that the metric may lose, in its own unit; None where it only tells."""
        return self.max_kl if self.judged_by == "kl" else self.max_drop

    @property
    def trains(self) -> bool:
        """Whether a method trains by gradients."""
        return not set(TRAINED).isdisjoint((self.method or "").split(","))

    @property
    def input_scales(self) -> str | None:
        """The transform that finds scales of inputs by data; None where there is none, or another."""
        return None if self.transform == ROTATION else self.transform

    @property
    def compensates(self) -> bool:
        """Whether products of low rank are added to some that are rounded."""
        return self.rank > 0 or any(override.rank for override in self.overrides)

    def reads(self, key: str) -> bool:
        """Whether the scheme reads a key."""
        return key in keys_read_by(self.family)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], origin: Origin | None = None) -> Recipe:
        """Build a recipe from plain values, as TOML and JSON give them.

        Args:
            values: By key.
            origin: Where they come from, for messages.

        Raises:
            UsageError: An unknown key, or a value of the wrong type, not among the choices, or that nothing reads.
        """
        origin, values = origin or Origin(), renamed(values)
        tables = values.get("overrides", ())
        if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
            raise UsageError(f"{origin.text}: overrides must be a list of tables, written as [[overrides]]")
        given = checked(cls, {key: value for key, value in values.items() if key != "overrides"}, origin)
        overrides = [
            Override.from_mapping(table, origin.inner(f"overrides[{index}]", table))
            for index, table in enumerate(tables)
        ]
        # Checked for all that was written, even where that is the default, and before the class itself would do it
        # without knowing where that was.
        recipe = object.__new__(cls)
        for key, value in {**_defaults(), **given, "overrides": tuple(overrides)}.items():
            object.__setattr__(recipe, key, value)
        recipe._check(given, origin)
        return recipe

    def _check(self, given: Mapping[str, Any], origin: Origin) -> None:
        """Refuse what does not go together, and what nobody reads of the settings that were given."""
        if unread := sorted(given.keys() - keys_read_by(self.family)):
            raise UsageError(f"{origin.name(unread)}: not read by scheme {self.scheme}")
        for index, override in enumerate(self.overrides):
            if override.scheme is not None and SCHEMES[override.scheme].family != self.family:
                where = f"{origin.text}: overrides[{index}]"
                raise UsageError(f'{where}: scheme "{override.scheme}" is of another family than that of the recipe')
        self._check_together(origin)
        self._refuse_two_choices(given, origin)
        for key, why in self._idle().items():
            if key in given:
                raise UsageError(f"{origin.name([key])}: not read {why}")

    def _check_together(self, origin: Origin) -> None:
        """Refuse settings that do not go together, of the recipe or of nodes that an override matches."""
        own = self._per_node()
        node_settings(own, origin)
        for index, override in enumerate(self.overrides):
            given = override.given()
            node_settings({**own, **given}, origin.inner(f"overrides[{index}]", given))
        if self.family == "minifloat-static" and self.range_method in ("entropy", "mse"):
            problem = f", for codes at equal distances; {self.scheme} takes minmax, moving-average or percentile"
            raise origin.error("range_method", self.range_method, problem)
        if self.lengths == SEARCH and (self.metric is None or self.max_loss is None):
            problem = ", which needs a metric, and max_drop or max_kl for what may be lost of it"
            raise origin.error("lengths", SEARCH, problem)
        if self.family == "static" and self.method not in (None, "rtn", "gptq"):
            raise origin.error("method", self.method, f", for weights alone; {self.scheme} takes rtn or gptq")
        if self.family == "dynamic" and self.input_scales is not None:
            problem = f", which needs data, for weights alone; {self.scheme} takes {ROTATION}"
            raise origin.error("transform", self.transform, problem)
        if not self.sequential and "qronos" in (self.method or ""):
            problem = ", but qronos rounds towards the float path, which at once is the only one; take gptq"
            raise origin.error("sequential", False, problem)
        if self.compensates:
            self._check_compensation(origin)
        if self.target == "any" and self.reduce_range is False:
            raise origin.error("target", "any", ", which needs weights of 7 bits; leave out the full range")

    def _check_compensation(self, origin: Origin) -> None:
        """Refuse what trains codes, or searches for a recipe, without what is added."""
        rank = self.rank or next(each.rank for each in self.overrides if each.rank)
        if self.trains:
            problem = f", but method {self.method} trains the codes without what is added; take gptq or qronos"
            raise origin.error("rank", rank, problem)
        for key in ("max_drop", "max_kl"):
            if getattr(self, key) is not None:
                problem = f", but {key} chooses among roundings alone; leave out the one or the other, or give a budget"
                raise origin.error("rank", rank, problem)

    def _per_node(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in (*PER_NODE, "per_channel")}

    def _idle(self) -> dict[str, str]:
        """Keys that the value of another one leaves without effect, and with which."""
        idle: dict[str, str] = {}
        judged_by = written_as(self.judged_by or "the cosine of outputs")
        if judged_by not in _ON_TEXT:
            idle |= dict.fromkeys(
                ("text", "window", "stride", "tokens"), f"with metric {judged_by}, only with {', '.join(_ON_TEXT)}"
            )
        if judged_by == "embeddings":
            idle |= dict.fromkeys(("stride", "tokens"), "with metric embeddings, which takes the text line by line")
        if judged_by == "kl":
            idle["max_drop"] = "with metric kl, whose bound is max_kl, in nats per token"
        else:
            idle["max_kl"] = f"with metric {judged_by}, only with kl"
        if self.family == "dynamic" and self.lengths != SEARCH:
            idle |= dict.fromkeys(settings_of(Judging), f'without lengths "{SEARCH}"')
        if not self.trains:
            idle |= dict.fromkeys(settings_of(Training), f"without a method that trains: {', '.join(TRAINED)}")
        elif "dwq" not in (self.method or "").split(","):
            idle["learning_rate"] = "without method dwq: signround-blocks moves by as much as it has steps"
        if self.max_loss is None and not self.trains:
            idle["search_time"] = "without a bound on a metric, max_drop or max_kl, or a method that trains"
        elif self.max_loss is not None:
            idle["budget"] = "with a bound on a metric, which finds the smallest model that meets it"
        if self.family == "sparse" and self.dtype == "float32":
            idle["activations"] = "with dtype float32, which leaves them as they are"
        if not self.fuse:
            found = "without fuse: layers are found by their attention"
            idle |= dict.fromkeys(("fuse_layers", "lengths", "length_budget"), found)
        if self.lengths not in (None, INPUT):
            idle["length_budget"] = "with lengths, which say it layer by layer"
        if self.criterion not in (None, "obs"):
            idle["sequential"] = f"with criterion {self.criterion}, which moves no weights"
        return idle

    def _refuse_two_choices(self, given: Mapping[str, Any], origin: Origin) -> None:
        """Of which blocks go, one thing alone has the say."""
        if self.mask is not None and not self.prune:
            both = origin.name(["mask", "prune"])
            raise UsageError(f"{both}: the masks say which weights go, or the zeros that are there do; leave one out")
        if self.chooses:
            return
        unread = sorted(_CHOOSING & given.keys())
        unread += [f"overrides[{i}].sparsity" for i, each in enumerate(self.overrides) if each.sparsity is not None]
        if unread:
            say = "the mask says" if self.mask is not None else "without pruning the zeros that are there say"
            raise UsageError(f"{origin.name(unread)}: not read: {say} which blocks go; leave out the one or the other")

    @property
    def chooses(self) -> bool:
        """Whether scheme sparse chooses blocks itself."""
        return self.prune and self.mask is None

    @classmethod
    def from_toml(
        cls, path: str | Path, given: Mapping[str, Any] | None = None, options: Mapping[str, str] | None = None
    ) -> Recipe:
        """Read a recipe file.

        Args:
            path: The file.
            given: Values that take the place of the file's.
            options: How they are written on the command line, as in `Origin`.

        Raises:
            UsageError: The file is not valid TOML or not a valid recipe.
            OnnxpressError: The file cannot be read.
        """
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise OnnxpressError(f"{path}: cannot read the recipe: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: not valid TOML: {error}") from error
        return cls.from_mapping({**values, **(given or {})}, Origin(str(path), options or {}))

    def to_mapping(self) -> dict[str, Any]:
        """Plain values that `from_mapping` reads back; unset ones are left out, and functions go by their names."""
        read = keys_read_by(self.family) - self._idle().keys() - (frozenset() if self.chooses else _CHOOSING)
        values = {k: v for k, v in dataclasses.asdict(self).items() if k in read and v is not None and v != ()}
        values["overrides"] = [
            {k: v for k, v in o.items() if v is not None and not (k == "keep_float" and not v)}
            for o in values.get("overrides", ())
        ]
        if self.metric is not None:
            values["metric"] = written_as(self.metric)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v != []}

    def decided(self, **values: Any) -> Recipe:
        """The recipe with what a conversion decided meanwhile, which users could not write beside the rest."""
        recipe = copy(self)
        for key, value in values.items():
            object.__setattr__(recipe, key, value)
        return recipe

    def settings(self, name: str, op_type: str, others: Collection[str] = ()) -> NodeSettings | Kept:
        """What to do with one node: its settings, or why it stays in float. Patterns match any name."""
        names = {name, *others}
        if self.include and not any(matches(pattern, names) for pattern in self.include):
            return Kept.NOT_INCLUDED
        if any(matches(pattern, names) for pattern in self.exclude):
            return Kept.EXCLUDED
        values = self._per_node()
        keep = False
        for override in self.overrides:
            if override.applies(names, op_type):
                keep = override.keep_float
                values.update(override.given())
        if keep:
            return Kept.OVERRIDDEN
        return node_settings(values, Origin(f"node {name}"))

    def unused_patterns(self, nodes: Collection[tuple[Collection[str], str]]) -> list[str]:
        """Patterns that match none of the (names, op_type) pairs: most likely typing errors."""
        unused = [
            f'{key} pattern "{pattern}"'
            for key in ("include", "exclude")
            for pattern in getattr(self, key)
            if not any(matches(pattern, names) for names, _ in nodes)
        ]
        unused += [
            f"override ({override.describe()})"
            for override in self.overrides
            if not any(override.applies(names, op_type) for names, op_type in nodes)
        ]
        return unused

    def literally(self, names: Collection[str]) -> Recipe:
        """The recipe for a model of these nodes: a pattern that is one of their names means that name alone."""

        def meant(pattern: str) -> str:
            return glob.escape(pattern) if pattern in names else pattern

        return dataclasses.replace(
            self,
            include=tuple(map(meant, self.include)),
            exclude=tuple(map(meant, self.exclude)),
            overrides=tuple(
                each if each.match is None else dataclasses.replace(each, match=meant(each.match))
                for each in self.overrides
            ),
        )


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(Recipe)}
