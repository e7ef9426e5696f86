"""Graphs inside nodes: If, Loop and Scan, whose bodies read values and weights from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import GraphProto, helper

from .sketch import Sketch, Unfit, Value

Emitter = Callable[[Sketch], Value]


def _fill(s: Sketch, x: Value, inner: Sequence[Emitter]) -> Value:
    """A few nodes behind `x` that end in its shape."""
    s.values.append(x)
    for _ in range(s.between(1, 2)):
        try:
            s.one_of(*inner)(s)
        except Unfit:
            continue
    y = s.pick(where=lambda v: v.shape == x.shape) or x
    if s.chance(0.5) and x.rank in (2, 3):
        weight = s.constant(s.grid(x.shape[-1], x.shape[-1]))
        y = s.op("MatMul", [y, weight], x.shape)
    return y if y.name in {name for node in s.nodes for name in node.output} else s.op("Identity", [y], x.shape)


def _graph(s: Sketch, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> GraphProto:
    infos = [
        [helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for v in values]
        for values in (inputs, outputs)
    ]
    return helper.make_graph(s.nodes, name, *infos, s.initializers)


def branches(inner: Sequence[Emitter]) -> Emitter:
    def emit(s: Sketch) -> Value:
        if s.outer is not None:
            raise Unfit
        x = s.matrix() if s.chance(0.7) else s.any()
        graphs = []
        for name in ("then", "else"):
            branch = Sketch(0, s)
            y = _fill(branch, x, inner)
            graphs.append(_graph(branch, name, [], [y]))
            s.used |= branch.used | {x.name}
        if s.chance(0.4):
            condition = s.constant(np.array(s.chance(0.5)))
        else:
            sum_ = s.op("ReduceMean", [x], (), keepdims=0, keep=False)
            zero = s.constant(np.float64(0), fixed=True)
            s.since(9)
            condition = s.op("Greater", [sum_, zero], (), np.bool_)
        return s.op("If", [condition], x.shape, then_branch=graphs[0], else_branch=graphs[1])

    return emit


def loop(inner: Sequence[Emitter]) -> Emitter:
    def emit(s: Sketch) -> Value:
        if s.outer is not None:
            raise Unfit
        x = s.matrix()
        body = Sketch(0, s)
        count = Value(s.name("i"), (), np.dtype(np.int64))
        going = Value(s.name("go"), (), np.dtype(np.bool_))
        state = Value(s.name("state"), x.shape, s.dtype)
        y = _fill(body, state, inner)
        y = body.op("Tanh", [y], x.shape)
        on = body.op("Identity", [going], (), np.bool_)
        graph = _graph(body, "body", [count, going, state], [on, y])
        s.used |= body.used
        times = s.constant(np.array(s.between(1, 3)), fixed=s.chance(0.7), other=np.array(2))
        start = s.constant(np.array(True))
        return s.op("Loop", [times, start, x], x.shape, body=graph)

    return emit


def scan(inner: Sequence[Emitter]) -> Emitter:
    def emit(s: Sketch) -> Value:
        if s.outer is not None:
            raise Unfit
        s.since(9)
        x = s.pick(3) or s.input(3, 2, 16)
        body = Sketch(0, s)
        row = Value(s.name("row"), x.shape[1:], s.dtype)
        y = _fill(body, row, inner)
        graph = _graph(body, "body", [row], [y])
        s.used |= body.used
        return s.op("Scan", [x], x.shape, body=graph, num_scan_inputs=1)

    return emit
