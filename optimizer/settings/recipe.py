"""What to do to a model: a recipe, read from TOML, the command line or Python, and stored in the output."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OnnxpressError, UsageError, named_alone
from ..quantization.schemes import FORMAT_ALIASES, SCHEMES, WeightScheme, weight_scheme
from .origin import Origin
from .values import checked

_ALWAYS = frozenset({"scheme", "clean_up", "check", "include", "exclude", "overrides"})
_READ = {
    "weight-only": _ALWAYS
    | {"block_size", "symmetric", "search", "scale_type", "per_channel", "form", "accuracy_level", "embeddings",
       "compensate"},
    "static": _ALWAYS
    | {"symmetric", "search", "range_method", "percentile", "activation_type", "per_channel", "reduce_range",
       "target", "equalize", "smooth", "compensate", "correct_bias", "restore_moments", "max_drop", "metric",
       "only_if_faster"},
    "dynamic": _ALWAYS | {"search", "reduce_range", "target", "fuse"},
    "minifloat-static": _ALWAYS
    | {"search", "weight_format", "activation_format", "coverage", "first_and_last", "range_method", "percentile",
       "smooth", "restore_moments", "max_drop", "metric"},
    "minifloat-dynamic": _ALWAYS | {"search", "weight_format", "activation_format", "coverage", "first_and_last"},
    "sparse": _ALWAYS
    | {"search", "fuse", "sparsity", "block", "dtype", "criterion", "allocation", "activations", "sequential",
       "prune", "mask", "expect_m", "range_method", "percentile"},
}  # fmt: skip
"""The keys that each kind of scheme reads."""

_OF_A_NODE = (
    "scheme", "block_size", "symmetric", "search", "scale_type", "per_channel", "accuracy_level", "sparsity",
    "weight_format", "activation_format",
)  # fmt: skip
"""What is settled node by node."""

_CHOOSING = frozenset({"sparsity", "criterion", "allocation", "sequential"})
"""Those of "sparse" that say which blocks go; where a mask or what is there says it, nobody reads them."""


@named_alone
@dataclasses.dataclass(frozen=True)
class Override:
    """Settings for the nodes that match both patterns; None leaves the recipe's value.

    Attributes:
        match: The node's name, or a glob pattern on it, as in `Recipe.include`.
        op_type: Operator, such as "Gemm".
        keep_float: Leave these nodes alone.
        scheme: As in `Recipe`.
        block_size: As in `Recipe`.
        symmetric: As in `Recipe`.
        search: As in `Recipe`.
        scale_type: As in `Recipe`.
        accuracy_level: As in `Recipe`.
        sparsity: As in `Recipe`.
        weight_format: As in `Recipe`.
        activation_format: As in `Recipe`.
    """

    match: str | None = None
    op_type: str | None = None
    keep_float: bool = False
    scheme: str | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    search: bool | None = None
    scale_type: str | None = None
    accuracy_level: int | None = None
    sparsity: float | None = None
    weight_format: str | None = None
    activation_format: str | None = None

    def applies(self, names: Collection[str], op_type: str) -> bool:
        """Whether the node of these names and this type is meant."""
        return (self.match is None or _matches(self.match, names)) and self.op_type in (None, op_type)

    def given(self) -> dict[str, Any]:
        """The settings that it changes."""
        return {key: value for key in _OF_A_NODE if (value := getattr(self, key, None)) is not None}

    def describe(self) -> str:
        """The patterns, as a user wrote them."""
        parts = [f'{key} = "{value}"' for key in ("match", "op_type") if (value := getattr(self, key)) is not None]
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class NodeSettings:
    """What the recipe says about one node."""

    weight: WeightScheme
    accuracy_level: int
    sparsity: float | None
    activation_format: str


@named_alone
@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to convert a model.

    Attributes:
        scheme: int2, int3, int4, int5, int6 or int8: bits of a weight. fp8, fp6, fp4 and others with a sign, an
            exponent and a mantissa, nf4, the Microscaling mxfp8, mxfp6 and mxfp4, and bfp8, bfp6 and bfp4: integers
            with scales that are powers of two. int8-static and int8-dynamic round activations too, with scales from
            a calibration or from each tensor as it comes, and so do fp8-static, fp8-e3m4-static, fp8-e5m2-static,
            fp8-mixed-static (e3m4 weights, e4m3fn activations) and fp8-dynamic.
        block_size: Weights along K that share a scale: 16, 32, 64, 128 or 256, or 0 for all of an output channel; None
            takes the scheme's default.
        symmetric: One fixed zero point instead of one a block; None takes the scheme's default. Of activations where
            the scheme rounds them: their weights always have it.
        search: Search each block's scale, errors of large weights counting more, instead of taking it from min and max.
        scale_type: float32 or float16; of floating-point weights also bfloat16, e8m0 (powers of two in 8 bits) or pow2
            (powers of two as float32); None takes the scheme's default.
        form: "qoperator" (com.microsoft::MatMulNBits where stock ONNX Runtime has the bits, else
            onnxpress::MatMulNBits or, for weights that are no integers, onnxpress::MatMulMiniFloat), "qdq"
            (DequantizeLinear) or "onnxpress" (our op for all bits).
        accuracy_level: Least precision of the computation: 4 rounds activations to int8, 3 to bfloat16, 0 to 2 are
            float32; None takes 4, or 3 for weights that are no integers.
        embeddings: Quantize large Gather tables too (4 and 8 bits).
        clean_up: Fold constants and fuse standard patterns first.
        check: Run the model before and after, on calibration data or on random inputs, and compare; None does up to
            500 MB of weights.
        include: Names of nodes, or glob patterns on them; empty means all. A node of an inner graph goes by its name,
            and by that behind those of the nodes around it, with slashes.
        exclude: The same of nodes to keep in float.
        overrides: Settings for some nodes; the last match wins, key by key.
        range_method: How a static scheme gets the range of a tensor from what a calibration saw: "minmax",
            "moving-average", "percentile", "entropy" or "mse", the last two of integers alone; None takes "percentile"
            for integers and "minmax" for floating-point numbers.
        percentile: Share of the values, in percent, that the method "percentile" keeps.
        activation_type: uint8 or int8. On x86 ONNX Runtime computes on uint8 alone.
        per_channel: One scale an output channel of a weight rather than one in all, where weights have no blocks.
        reduce_range: Weights of 7 bits, for CPUs whose products of uint8 and int8 saturate; None asks the target.
        target: CPUs that int8 weights are made for: "this" machine's, or "any", which takes 7 bits.
        equalize: Even out the channels of neighbouring layers first.
        smooth: Move outliers of activations into the weights of the products that read them first, at the price of a
            Mul where no constant takes their scale; None does only what costs nothing, and needs data, too.
        compensate: Round inputs of a weight one after the other, the next making up for the last; None where there is
            data, of weights alone where data is given.
        correct_bias: Take the mean error of rounding out of the biases.
        restore_moments: Give each channel of a Conv its mean and deviation on the data back; None where there is data
            and, if a metric is given, the model is better for it.
        max_drop: Keep the fewest layers in float with which the metric drops by no more than this share.
        metric: "module:function" or a task of the catalogue; None takes the outputs' cosine against float32.
        only_if_faster: Keep layers in float that this machine runs slower in int8, and give no model that is not
            faster than float32.
        weight_format: Of fp8-static and fp8-dynamic: e4m3fn (or e4m3), e5m2, e3m4, e3m2, e2m3 or e2m1; None takes the
            scheme's.
        activation_format: The same of activations: e4m3fn (or e4m3), e5m2 or e3m4.
        coverage: What these round: "standard" is what Conv, Gemm and MatMul read, "extended" also what Add and Mul of
            two tensors, LayerNormalization and BatchNormalization read, and the tables of embeddings.
        first_and_last: Let them round what the first and the last products read, too; None does in models without
            Conv.
        fuse: Fuse the attention of encoders first, into operators of ONNX Runtime.
        sparsity: Share of the blocks that "sparse" removes, from 0 up to but not 1; None takes 0.8, or 0.5 by
            magnitude, which no model bears more of in one shot.
        block: Inputs x outputs of a block, such as "4x4", "4x1" or "1x16"; None takes 4x4, or finds it in weights that
            are sparse already.
        dtype: Of the weights that are kept: "int8" or "float32".
        criterion: Which blocks go: "magnitude", "wanda" or "obs"; None takes "obs" where there is calibration data, and
            else "magnitude".
        allocation: "sensitivity" removes more blocks where layers lose less by it, relative to their outputs;
            "uniform" the same share everywhere.
        activations: Codes of int8 "dynamic", with a scale a row, or "static", with one from a calibration.
        sequential: Let "obs" move the weights of each layer for what the layers before it make by now.
        prune: Choose blocks; else only zeros that are there already are left out, and nothing changes.
        mask: .npz file of what to keep, by weight, in place of choosing blocks.
        expect_m: Rows of activations. Layers that this machine then runs faster dense stay whole, as dynamic int8 where
            that is the fastest.
    """

    scheme: str = "int4"
    block_size: int | None = None
    symmetric: bool | None = None
    search: bool = True
    scale_type: str | None = None
    form: str = "qoperator"
    accuracy_level: int | None = None
    embeddings: bool = False
    clean_up: bool = True
    check: bool | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    range_method: str | None = None
    percentile: float = 99.999
    activation_type: str = "uint8"
    per_channel: bool = True
    reduce_range: bool | None = None
    target: str = "this"
    equalize: bool = False
    smooth: bool | None = None
    compensate: bool | None = None
    correct_bias: bool = True
    restore_moments: bool | None = None
    max_drop: float | None = None
    metric: str | None = None
    only_if_faster: bool = False
    weight_format: str | None = None
    activation_format: str | None = None
    coverage: str = "standard"
    first_and_last: bool | None = None
    fuse: bool = True
    sparsity: float | None = None
    block: str | None = None
    dtype: str = "int8"
    criterion: str | None = None
    allocation: str = "sensitivity"
    activations: str = "dynamic"
    sequential: bool = True
    prune: bool = True
    mask: str | None = None
    expect_m: int | None = None

    def __post_init__(self) -> None:
        """Check values that came straight from Python.

        Raises:
            UsageError: A value is of the wrong type or not among the choices.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "overrides"}
        checked(type(self), {key: value for key, value in values.items() if value is not None}, Origin())
        _check_together(values, self.overrides, Origin())

    @property
    def kind(self) -> str:
        """Of the scheme, see `Preset`."""
        return SCHEMES[self.scheme].kind

    @property
    def is_minifloat(self) -> bool:
        """Whether activations become floating-point numbers of few bits."""
        return self.kind.startswith("minifloat")

    @property
    def ranges(self) -> str:
        """The range method."""
        return self.range_method or ("minmax" if self.is_minifloat else "percentile")

    @property
    def formats(self) -> tuple[str, str]:
        """Of weights and activations of a scheme that rounds both to minifloats, where no override says another."""
        settings = _node_settings({key: getattr(self, key) for key in _OF_A_NODE}, Origin())
        return settings.weight.format, settings.activation_format

    def reads(self, key: str) -> bool:
        """Whether the scheme reads a key."""
        return key in _READ[self.kind]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], origin: Origin | None = None) -> Recipe:
        """Build a recipe from plain values, as TOML and JSON give them.

        Args:
            values: By key.
            origin: Where they come from, for messages.

        Raises:
            UsageError: An unknown key, or a value of the wrong type, not among the choices, or that nothing reads.
        """
        origin = origin or Origin()
        fields = checked(cls, values, origin)
        scheme = fields.get("scheme", cls.scheme)
        if unread := sorted(fields.keys() - _READ[SCHEMES[scheme].kind]):
            raise UsageError(f"{origin.name(unread)}: not read by scheme {scheme}")
        overrides = fields.pop("overrides", ())
        if not isinstance(overrides, list | tuple) or not all(isinstance(o, Mapping) for o in overrides):
            raise UsageError(f"{origin.text}: overrides must be a list of tables, written as [[overrides]]")
        built = []
        for index, table in enumerate(overrides):
            where = origin.inner(f"overrides[{index}]", table)
            override = Override(**checked(Override, table, where))
            if override.match is None and override.op_type is None:
                raise UsageError(f"{where.text}: give match (a pattern on node names) or op_type")
            built.append(override)
            if override.scheme is not None and SCHEMES[override.scheme].kind != SCHEMES[scheme].kind:
                raise UsageError(f'{where.text}: scheme "{override.scheme}" is of another kind than that of the recipe')
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        _check_together({**defaults, **fields}, built, origin)
        recipe = cls(**fields, overrides=tuple(built))
        recipe._refuse_two_choices(fields, origin)
        for key, why in recipe._idle().items():
            if key in fields:
                raise UsageError(f"{origin.name([key])}: not read {why}")
        return recipe

    def _idle(self) -> dict[str, str]:
        """Keys of scheme sparse that the value of another one leaves without effect, and with which."""
        idle = {}
        if self.kind == "sparse" and self.dtype == "float32":
            idle["activations"] = "with dtype float32, which leaves them as they are"
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
        """Plain values that `from_mapping` reads back; unset ones are left out."""
        read = _READ[self.kind] - self._idle().keys() - (frozenset() if self.chooses else _CHOOSING)
        values = {k: v for k, v in dataclasses.asdict(self).items() if k in read and v is not None and v != ()}
        values["overrides"] = [
            {k: v for k, v in o.items() if v is not None and not (k == "keep_float" and not v)}
            for o in values.get("overrides", ())
        ]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v != []}

    def settings(self, name: str, op_type: str, others: Collection[str] = ()) -> NodeSettings | str:
        """What to do with one node: its settings, or the reason to leave it in float. Patterns match any name."""
        names = {name, *others}
        if self.include and not any(_matches(pattern, names) for pattern in self.include):
            return "not included by the recipe"
        if any(_matches(pattern, names) for pattern in self.exclude):
            return "excluded by the recipe"
        values = {key: getattr(self, key) for key in _OF_A_NODE}
        keep = False
        for override in self.overrides:
            if override.applies(names, op_type):
                keep = override.keep_float
                values.update(override.given())
        if keep:
            return "kept in float by an override of the recipe"
        return _node_settings(values, Origin(f"node {name}"))

    def unused_patterns(self, nodes: Collection[tuple[Collection[str], str]]) -> list[str]:
        """Patterns that match none of the (names, op_type) pairs: most likely typing errors."""
        unused = [
            f'{key} pattern "{pattern}"'
            for key in ("include", "exclude")
            for pattern in getattr(self, key)
            if not any(_matches(pattern, names) for names, _ in nodes)
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


def _matches(pattern: str, names: Collection[str]) -> bool:
    """Whether a pattern is, or matches, one of the names; these may hold brackets themselves."""
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _check_together(values: Mapping[str, Any], overrides: Sequence[Override], origin: Origin) -> None:
    """Refuse settings that do not go together, of the recipe or of nodes that an override matches."""
    own = {key: values[key] for key in _OF_A_NODE}
    _node_settings(own, origin)
    for index, override in enumerate(overrides):
        given = override.given()
        _node_settings({**own, **given}, origin.inner(f"overrides[{index}]", given))
    method = values["range_method"]
    if SCHEMES[values["scheme"]].kind == "minifloat-static" and method in ("entropy", "mse"):
        problem = f", for codes at equal distances; {values['scheme']} takes minmax, moving-average or percentile"
        raise origin.error("range_method", method, problem)
    if values["target"] == "any" and values["reduce_range"] is False:
        raise origin.error("target", "any", ", which needs weights of 7 bits; leave out the full range")


def _node_settings(values: Mapping[str, Any], origin: Origin) -> NodeSettings:
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
    if (given := values["weight_format"]) is not None:
        weight = dataclasses.replace(weight, format=FORMAT_ALIASES.get(given, given))
    activations = values["activation_format"] or SCHEMES[name].activations
    return NodeSettings(weight, level, values["sparsity"], FORMAT_ALIASES.get(activations, activations))
