"""What a model says beside what it computes, kept through a conversion, or its loss told.

Documentation, metadata, denotations, annotations and plans for devices change no result, so rewrites do not look after
them. They are noted before and given back after, to what has the same name in the same graph by then: a value, a node,
or, for a node that is gone, the one that makes its result.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir

from ..graph.rewriting import result_name
from ..model_io.storage import UNREAD

_FIELDS = ("doc_string", "metadata_props", "producer_name", "producer_version", "domain", "model_version", "name")
_OF_PARTS = ("doc_string", "metadata_props")  # of all but the model and its graphs
_ANNOTATION = "quant_parameter_tensor_names"  # as onnx-ir calls it
_SHOWN = 3

Key = tuple[str, ...]
"""Kind of a thing, where it is, and its name."""


@dataclasses.dataclass(frozen=True)
class _Thing:
    """What something may be said of: the object, and the name of what it makes."""

    holder: Any
    makes: str | None = None


class Annotations:
    """What is said in a model.

    Args:
        model: Whose nodes have names.
    """

    def __init__(self, model: ir.Model) -> None:
        self._unread = list(model.meta.get(UNREAD, ()))
        things = dict(_things(model))
        self._said = {key: said for key, thing in things.items() if (said := _said(thing.holder))}
        self._makes = {key: things[key].makes for key in self._said}

    def give_back(self, model: ir.Model) -> list[str]:
        """Put everything where it belongs now, and tell what has no place any more, a line a field."""
        things = dict(_things(model))
        holders = self._holders(things)
        lost: dict[str, list[str]] = defaultdict(list)
        for key, said in self._said.items():
            for field in _say(holders[key], said) if key in holders else said:
                lost[field].append(_shown(key))
        for name in _drop_dangling(things, model):
            lost["quantization_annotation"].append(name)
        lines = [f"{field} is not kept" for field in self._unread]
        return lines + [f"{field} is not kept of {_listed(names)}" for field, names in lost.items()]

    def _holders(self, things: dict[Key, _Thing]) -> dict[Key, Any]:
        """What has the place now of each thing that something was said of."""
        by_name: dict[Key, list[_Thing]] = defaultdict(list)
        by_result: dict[str | None, list[_Thing]] = defaultdict(list)
        for key, thing in things.items():
            by_name[key[0], key[-1]].append(thing)
            by_result[thing.makes].append(thing)
        named = {key: things.get(key) or _only(by_name[key[0], key[-1]]) for key in self._said}
        holders = {key: thing.holder for key, thing in named.items() if thing is not None}
        claimed = set(map(id, holders.values()))
        for key in self._said.keys() - holders.keys():
            maker = _only(by_result[makes]) if (makes := self._makes[key]) else None
            if maker is not None and id(maker.holder) not in claimed:
                holders[key] = maker.holder
        return {key: holder for key, holder in holders.items() if holder is not None}


def _only(found: list[_Thing]) -> _Thing | None:
    return found[0] if len(found) == 1 else None


def _things(model: ir.Model) -> Iterator[tuple[Key, _Thing]]:
    """Everything in a model that something may be said of."""
    yield ("model", ""), _Thing(model)
    for function in model.functions.values():
        yield ("function", "", f"{function.domain}::{function.name}"), _Thing(function)
    yield from _in_graph(model.graph, "")


def _in_graph(graph: ir.Graph, path: str) -> Iterator[tuple[Key, _Thing]]:
    yield ("graph", path), _Thing(graph)
    for value in graph.inputs:
        yield ("value", path, value.name or ""), _Thing(value)
    for name, value in graph.initializers.items():
        yield ("value", path, name), _Thing(value)
        yield ("initializer", path, name), _Thing(value.const_value)
    for node in graph:
        yield ("node", path, node.name or ""), _Thing(node, result_name(node))
        for value in node.outputs:
            if value.name:
                yield ("value", path, value.name), _Thing(value)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _in_graph(attribute.value, f"{path}/{node.name}/{attribute.name}")
            elif attribute.type == ir.AttributeType.GRAPHS:
                for index, inner in enumerate(attribute.value):
                    yield from _in_graph(inner, f"{path}/{node.name}/{attribute.name}/{index}")


def _said(holder: Any) -> dict[str, Any]:
    """What is said of something, by field."""
    whole = isinstance(holder, ir.Model | ir.Graph)
    said: dict[str, Any] = {}
    for field in _FIELDS if whole else _OF_PARTS:
        if value := getattr(holder, field, None):
            said[field] = dict(value) if field == "metadata_props" else value
    if isinstance(holder, ir.Value):
        if annotation := holder.meta.get(_ANNOTATION):
            said["quantization_annotation"] = annotation
        if holder.type is not None and holder.type.denotation:
            said["denotation"] = holder.type.denotation
        axes = {} if holder.shape is None else {i: holder.shape.get_denotation(i) for i in range(len(holder.shape))}
        if axes := {axis: denotation for axis, denotation in axes.items() if denotation}:
            said["denotation of axes"] = axes
    if plans := getattr(holder, "device_configurations", ()):  # not there before onnx-ir 1.0
        specs = [getattr(plan, "sharding_specs", ()) for plan in plans]  # those of nodes alone have any
        said["device_configurations"] = plans, [[spec.value and spec.value.name for spec in each] for each in specs]
    return said


def _say(holder: Any, said: dict[str, Any]) -> list[str]:
    """Say it where nothing else is said; the fields of which something is lost."""
    return [field for field, value in said.items() if not _SETTERS.get(field, _set)(holder, field, value)]


def _set(holder: Any, field: str, value: Any) -> bool:
    if not getattr(holder, field, None):
        setattr(holder, field, value)
    return bool(getattr(holder, field) == value)


def _set_metadata(holder: Any, field: str, value: dict[str, str]) -> bool:
    for key, text in value.items():
        holder.metadata_props.setdefault(key, text)
    return all(holder.metadata_props[key] == text for key, text in value.items())


def _set_annotation(holder: ir.Value, _field: str, value: Any) -> bool:
    return bool(holder.meta.setdefault(_ANNOTATION, value) == value)


def _set_denotation(holder: ir.Value, _field: str, value: str) -> bool:
    kind = holder.type
    if isinstance(kind, ir.TensorType) and not kind.denotation:
        holder.type = ir.TensorType(kind.dtype, denotation=value)
    return holder.type is not None and holder.type.denotation == value


def _set_axes(holder: ir.Value, _field: str, value: dict[int, str]) -> bool:
    if holder.shape is None or len(holder.shape) <= max(value):
        return False
    if holder.shape.frozen:
        holder.shape = holder.shape.copy()
    for axis, denotation in value.items():
        holder.shape.set_denotation(axis, denotation)
    return True


def _set_plans(holder: Any, field: str, value: tuple[Any, list[list[str | None]]]) -> bool:
    """Those of a node are for tensors that it reads or makes."""
    plans, tensors = value
    if not isinstance(holder, ir.Node):
        return _set(holder, field, plans)
    near = {each.name: each for each in (*holder.inputs, *holder.outputs) if each is not None}
    if not all(name in near for names in tensors for name in names):
        holder.device_configurations = ()
        return False
    holder.device_configurations = tuple(
        dataclasses.replace(
            plan,
            sharding_specs=tuple(
                dataclasses.replace(spec, value=near[name])
                for spec, name in zip(plan.sharding_specs, names, strict=True)
            ),
        )
        for plan, names in zip(plans, tensors, strict=True)
    )
    return True


_SETTERS: dict[str, Callable[[Any, str, Any], bool]] = {
    "metadata_props": _set_metadata,
    "quantization_annotation": _set_annotation,
    "denotation": _set_denotation,
    "denotation of axes": _set_axes,
    "device_configurations": _set_plans,
}


def _drop_dangling(things: dict[Key, _Thing], model: ir.Model) -> Iterator[str]:
    """Annotations that name scales or zero points which are not there."""
    known = {name for kind, *_, name in things if kind == "value"}
    for (kind, *_, name), thing in things.items():
        annotation = thing.holder.meta.get(_ANNOTATION, {}) if kind == "value" else {}
        if annotation and not known.issuperset(annotation.values()):
            del thing.holder.meta[_ANNOTATION]
            yield name


def _shown(key: Key) -> str:
    kind, *_, name = key
    return f"{kind} {name}".strip()


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
