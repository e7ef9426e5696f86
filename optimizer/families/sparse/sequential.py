"""Layers finished one after the other, each for the input that those before it make by now.

What a layer loses reaches those behind it. So the input of each is observed twice, in the float model and in a copy
where all layers before it have their new weights, and its weights are moved to bring the new output close to the old.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...calibration.observe import Observer
from ...graph.rewriting import add_array, insert_before, required
from ...model_io.names import copy_of
from ...passes.sparsify_matmul import SparseLayer
from ...planning.result import Progress
from ...quantization.input_moments import InputMoments
from ...runtime.feeds import Feeds
from .layer import Layer

Doubles = npt.NDArray[np.float64]


def finish_in_order(
    model: ir.Model, layers: list[Layer], data: Iterable[Feeds], progress: Progress
) -> dict[ir.Node, SparseLayer]:
    """What takes the place of each layer's weight.

    Args:
        model: The float model, which stays as it is.
        layers: In the order of the graph, with their masks.
        data: What to run both models on; all batches each time.
        progress: Told how the work goes on.

    Raises:
        OnnxpressError: ONNX Runtime cannot run a model.
    """
    copy = _Copy(model)
    made: dict[ir.Node, SparseLayer] = {}
    for group in _by_input(layers):
        progress("prune", len(made), len(layers))
        first = group[0]
        moments = known = required(first.moments())
        if made:  # before the first nothing has changed
            sums = _observe(model, copy.model, _input(first.node), copy.input_of(first), data)
            moments = sums.moments(known)
        for layer in group:
            made[layer.node] = layer.finish(moments)
            copy.change(layer, made[layer.node])
    progress("prune", len(layers), len(layers))
    return made


def _by_input(layers: list[Layer]) -> Iterator[list[Layer]]:
    """Layers that follow each other and read the same tensor."""
    group: list[Layer] = []
    for layer in layers:
        if group and layer.node.inputs[0] is not group[0].node.inputs[0]:
            yield group
            group = []
        group.append(layer)
    if group:
        yield group


def _input(node: ir.Node) -> str:
    value = node.inputs[0]
    assert value is not None
    return value.name or ""


class _Copy:
    """A copy of the model whose layers change one by one.

    Attributes:
        model: The copy.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = copy_of(model)
        self._nodes = {node.name: node for node in self.model.graph}

    def input_of(self, layer: Layer) -> str:
        """Name of the tensor that a layer reads here."""
        return _input(self._nodes[layer.node.name])

    def change(self, layer: Layer, made: SparseLayer) -> None:
        """Give a layer its new weight, and add what its bias takes back."""
        node, graph = self._nodes[layer.node.name], self.model.graph
        weight = add_array(graph, f"{node.name}_pruned", layer.found)
        y = insert_before(node, "MatMul", [node.inputs[0], weight], node.outputs[0], suffix="_pruned")
        if made.shift is not None:
            shift = add_array(graph, f"{node.name}_shift", made.shift)
            y = insert_before(node, "Add", [y, shift], node.outputs[0], suffix="_shifted")
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            beta = add_array(graph, f"{node.name}_beta", np.float32(node.attributes.get_float("beta", 1.0)))
            c = insert_before(node, "Mul", [node.inputs[2], beta], None, suffix="_scaled_C")
            y = insert_before(node, "Add", [y, c], node.outputs[0], suffix="_with_C")
        ir.convenience.replace_all_uses_with(node.outputs[0], y, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _observe(model: ir.Model, changed: ir.Model, before: str, now: str, data: Iterable[Feeds]) -> _Sums:
    """Sums of a tensor in the float model and in the other one."""
    sums = _Sums()
    readers = [_Rows(each, name) for each, name in ((model, before), (changed, now))]
    for feeds in data:
        sums.add(*(reader(feeds) for reader in readers))
    return sums


class _Rows:
    """Rows of a tensor, which may be an input of the model."""

    def __init__(self, model: ir.Model, name: str) -> None:
        self._name = name
        is_input = name in {value.name for value in model.graph.inputs}
        self._observer = None if is_input else Observer(model, [name])

    def __call__(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        value = feeds[self._name] if self._observer is None else self._observer.run(feeds)[0]
        rows: npt.NDArray[np.float32] = value.reshape(-1, value.shape[-1])
        return rows


class _Sums:
    """Sums of two inputs of a layer and of their products; rows wait until they are as many as there are channels."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
        self._products: list[Doubles] = []
        self._totals: list[Doubles] = []

    def add(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> None:
        """See rows of both."""
        self._waiting.append((x.copy(), y.copy()))
        if sum(len(rows) for rows, _ in self._waiting) >= x.shape[1]:
            self._multiply()

    def _multiply(self) -> None:
        x, y = (np.concatenate(rows) for rows in zip(*self._waiting, strict=True))
        self._waiting = []
        self._count += len(x)
        self._totals = _plus(self._totals, [rows.sum(axis=0, dtype=np.float64) for rows in (x, y)])
        # float32 loses less of them than damping adds, in half the time.
        self._products = _plus(self._products, [y.T @ y, y.T @ x])

    def moments(self, known: InputMoments) -> InputMoments:
        """Those of all rows, where the covariance of x is known."""
        if self._waiting:
            self._multiply()
        mean_x, mean_y = (total / self._count for total in self._totals)
        yy, yx = (product / self._count for product in self._products)
        second, cross = yy - np.outer(mean_y, mean_y), yx - np.outer(mean_y, mean_x)
        return InputMoments(
            second[None], self._count, cross[None], known.second, mean=mean_y[None], float_mean=mean_x[None]
        )


def _plus(sums: list[Doubles], new: list[npt.NDArray[Any]]) -> list[Doubles]:
    return [old + each for old, each in zip(sums, new, strict=True)] if sums else [e.astype(np.float64) for e in new]
