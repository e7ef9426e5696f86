"""A random graph in the making: values with known shapes, constants in every form, and names that collide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = (7, 25)
FLOATS = (np.float32, np.float16, np.float64)
_SUFFIXES = (
    "_packed", "_scales", "_zero_points", "_bias", "_codes", "_scale", "_quantize", "_dequantize", "_quantized",
    "_folded", "_size", "_shape", "_float", "_1", "_2", "_0", "_reshape", "_transpose", "_out", "_range",
)  # fmt: skip
"""Ends of names that rewrites make, so that some are there already."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)


class Unfit(Exception):  # noqa: N818
    """What an emitter raises where its operator is not of this opset or no value suits it."""


class Sketch:
    """A graph to which emitters append nodes.

    Attributes:
        rng: Of all choices.
        opset: Of the standard domain.
        dtype: Of floats.
        values: Floats that emitters may read, oldest first.
        feeds: Inputs of the model, which calibrations vary.
        overrides: Other values of the initializers that are inputs.
    """

    def __init__(self, seed: int, outer: Sketch | None = None) -> None:
        self.outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: list[Value] = []
        self.used: set[str] = set()
        if outer is not None:
            self.rng, self.opset, self.dtype, self.names = outer.rng, outer.opset, outer.dtype, outer.names
            self.feeds, self.overrides, self.ir_version = outer.feeds, outer.overrides, outer.ir_version
            self.values = list(outer.values)
            return
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.integers(OPSETS[0], OPSETS[1] + 1))
        self.dtype = np.dtype(self.rng.choice(FLOATS, p=[0.84, 0.1, 0.06]))
        self.ir_version = int(self.rng.choice([4, 8, 10])) if self.opset < 21 else 11
        if self.opset >= 24:
            self.ir_version = 12
        elif self.opset >= 23:
            self.ir_version = 11
        if self.opset < 9 and self.rng.random() < 0.3:
            self.ir_version = 3
        self.names: set[str] = set()
        self.feeds: dict[str, np.ndarray] = {}
        self.overrides: dict[str, np.ndarray] = {}

    # ---- choices

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def one_of(self, *things):
        return things[int(self.rng.integers(len(things)))]

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def since(self, opset: int) -> None:
        """Give up before this opset."""
        if self.opset < opset:
            raise Unfit

    def until(self, opset: int) -> None:
        """Give up after this opset."""
        if self.opset > opset:
            raise Unfit

    # ---- names

    def name(self, base: str = "v") -> str:
        if self.chance(0.12) and self.names:
            base = self.one_of(*sorted(self.names)) + self.one_of(*_SUFFIXES)
        name, count = base, 0
        while name in self.names or name == "v":
            name, count = f"{base}{count}", count + 1
        self.names.add(name)
        return name

    # ---- values

    def input(self, *shape: int, dtype=None) -> Value:
        """A new input of the model: floats, among them rows that are all zero or all the same."""
        dtype = np.dtype(dtype or self.dtype)
        owner = self
        while owner.outer is not None:
            owner = owner.outer
        value = Value(self.name("x"), tuple(shape), dtype)
        array = self.rng.standard_normal(shape)
        if shape and shape[0] > 1 and self.chance(0.3):
            array[0] = self.one_of(0.0, 0.5, 1.0)
        owner.feeds[value.name] = (array * self.one_of(1, 1, 1, 4)).astype(dtype)
        owner.values.append(value)
        if owner is not self:
            self.values.append(value)
        return value

    def pick(self, rank: int | None = None, where: Callable[[Value], bool] = lambda _: True) -> Value | None:
        """A value of floats, mostly the newest that fits."""
        fitting = [v for v in self.values if v.dtype == self.dtype and (rank is None or v.rank == rank) and where(v)]
        if not fitting:
            return None
        return fitting[-1] if self.chance(0.7) else self.one_of(*fitting)

    def matrix(self) -> Value:
        """Rows of 16 to 64 numbers, of rank 2 or 3."""
        found = self.pick(where=lambda v: v.rank in (2, 3) and v.shape[-1] >= 2)
        if found is not None and self.chance(0.9):
            return found
        width = self.one_of(16, 32, 48, 64, 64)
        return self.input(*self.one_of((3, width), (4, width), (1, width), (2, 3, width)))

    def image(self) -> Value:
        if self.dtype == np.float64:  # for which ONNX Runtime has few of their operators
            raise Unfit
        found = self.pick(4, where=lambda v: min(v.shape[2:]) >= 3)
        if found is not None and self.chance(0.9):
            return found
        return self.input(self.one_of(1, 2), self.one_of(1, 2, 3, 4, 8), self.between(5, 10), self.between(5, 10))

    def any(self) -> Value:
        found = self.pick(where=lambda v: v.rank >= 1)
        if found is not None:
            return found
        return self.matrix() if self.chance(0.5) else self.image()

    # ---- constants

    def constant(self, array, other=None, fixed: bool = False, dtype=None) -> str:
        """Name of a constant: an initializer, shared or not, a default of an input, a Constant node, or behind one.

        Args:
            array: Floats become those of the graph unless `dtype` says otherwise.
            other: What a caller may feed in its place; random numbers by default of floats, nothing of other types.
            fixed: It is no input's default.
            dtype: Of the elements.
        """
        array = np.asarray(array)
        if dtype is not None or array.dtype.kind == "f":
            array = array.astype(dtype or self.dtype)
        if other is None and array.dtype.kind == "f":
            other = array * self.one_of(1.5, -0.5, 0.75) + self.one_of(0, 0.25)
        how = self.rng.random()
        if self.outer is None and not fixed and other is not None and how < 0.1 and self.ir_version >= 4:
            name = self.name("c")
            self.initializers.append(numpy_helper.from_array(array, name))
            self.overrides[name] = np.asarray(other, array.dtype)
            return name
        if how < 0.25:
            for tensor in self.initializers:
                known = numpy_helper.to_array(tensor)
                if tensor.name not in self.overrides and known.dtype == array.dtype and known.shape == array.shape \
                        and np.array_equal(known, array):  # fmt: skip
                    return tensor.name
        name = self.name("c")
        if how > 0.85:
            self._append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, "")))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        if 0.8 < how < 0.85:
            return self.op("Identity", [name], array.shape, array.dtype).name
        return name

    def ints(self, *numbers: int, other=None, fixed: bool = True) -> str:
        return self.constant(np.array(numbers, np.int64), other, fixed=fixed)

    # ---- nodes

    def _append(self, node: onnx.NodeProto) -> None:
        if self.chance(0.6):
            name = self.one_of(node.op_type, f"n{len(self.nodes)}", f"/block/{node.op_type}_{len(self.nodes)}")
            node.name = name if all(other.name != name for other in self.nodes) else ""
        self.nodes.append(node)
        self.used.update(filter(None, node.input))

    def op(self, op_type: str, inputs: Sequence[str | Value], shape, dtype=None, *, domain: str = "", keep=None,
           more: int = 0, **attributes) -> Value:  # fmt: skip
        """Append a node; its first result has this shape and type, and may be read by others.

        Args:
            op_type: The operator.
            inputs: Values or names; "" is left out.
            shape: Of the first result.
            dtype: Of the first result; that of the graph by default.
            domain: Of the operator.
            keep: Whether other nodes may read the result; by default where it holds floats.
            more: Further results, which nobody reads.
            attributes: Without those that are None.
        """
        value = Value(self.name(), tuple(int(size) for size in shape), np.dtype(dtype or self.dtype))
        names = [each.name if isinstance(each, Value) else each for each in inputs]
        while names and not names[-1]:
            names.pop()
        given = {key: each for key, each in attributes.items() if each is not None}
        results = [value.name, *(self.name() for _ in range(more))]
        self._append(helper.make_node(op_type, names, results, domain=domain, **given))
        if keep if keep is not None else value.dtype == self.dtype:
            self.values.append(value)
        return value

    def grid(self, *shape: int, rows: int = 0) -> np.ndarray:
        """A weight that 4 and 8 bits hold exactly in blocks of 16 or more along axis `rows`."""
        codes = self.rng.integers(-7, 9, shape)
        along = np.moveaxis(codes, rows, 0)
        along[::16] = 8
        along[1::16] = -7
        return (codes / self.one_of(8, 16)).astype(np.float64)

    # ---- the model

    def model(self) -> onnx.ModelProto:
        """The graph with what nobody reads as outputs, and some of the rest."""
        inputs = [_info(name, array) for name, array in self.feeds.items()]
        dims = self.chance(0.3)
        if dims:
            for entry in inputs:
                _open(entry, self)
        listed = (
            self.initializers if self.ir_version < 4 else [t for t in self.initializers if t.name in self.overrides]
        )
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in listed]
        inner = {v.name: v for v in self.values if v.name not in self.feeds}
        outputs = [v for v in inner.values() if v.name not in self.used or self.chance(0.08)] or self.values[-1:]
        graph = helper.make_graph(
            self.nodes, "g", inputs,
            [helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(v.dtype), None) for v in outputs],
            self.initializers,
        )  # fmt: skip
        domains = {node.domain for node in self.nodes} - {""}
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
        return helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)

    def others(self, count: int) -> list[dict[str, np.ndarray]]:
        """More sets of inputs."""
        found = []
        for seed in range(count):
            rng = np.random.default_rng(seed)
            found.append({n: (rng.standard_normal(a.shape) * max(a.std(), 0.5)).astype(a.dtype)
                          if a.dtype.kind == "f" else a for n, a in self.feeds.items()})  # fmt: skip
        return found


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))


def _open(entry: onnx.ValueInfoProto, sketch: Sketch) -> None:
    """Leave the first axis of an input open."""
    if entry.type.tensor_type.shape.dim and entry.type.tensor_type.elem_type != TensorProto.BOOL:
        first = entry.type.tensor_type.shape.dim[0]
        size = first.dim_value
        first.Clear()
        if sketch.chance(0.7):
            first.dim_param = f"N{size}"  # sizes of one name are one size
