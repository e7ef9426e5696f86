"""Graphs around products of few bits, run on the execution provider beside stock ONNX Runtime."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnxpress import ep
from sessions import KNOWS_WHO_RUNS_WHAT, options

K, N = 64, 48
M = "com.microsoft"


def taken(session):
    """Types of the nodes on the execution provider; unknown, so None, before ONNX Runtime 1.24."""
    if not KNOWS_WHO_RUNS_WHAT:
        return None
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == ep.NAME]
    return sorted(node.op_type for part in parts for node in part.get_nodes())


class Layer:
    """A graph around products with random weights of 4 bits."""

    def __init__(self, dtype=np.float32, rows=("batch", "sequence"), opset=20):
        self.b = graphs.Builder(opset)
        self.b.graph.opset_imports[M] = 1
        self.dtype, self.rows = dtype, list(rows)
        self.kind = ir.DataType.from_numpy(np.dtype(dtype))
        self.x = self.b.input("x", [*rows, K], self.kind)
        self.rng = np.random.default_rng(0)

    def product(self, name, bias=None, x=None, K=K, N=N):
        codes = self.rng.integers(0, 256, (N, K // 32, 16), dtype=np.uint8)
        scales = self.rng.uniform(0.05, 0.1, codes.shape[:2]).astype(self.dtype)
        inputs = [x or self.x, self.b.constant(f"{name}.B", codes), self.b.constant(f"{name}.scales", scales)]
        values = self.rng.standard_normal(N).astype(self.dtype)
        if bias == "input":
            inputs += [None, None, self.b.constant(f"{name}.bias", values)]
        y = self.b.op("MatMulNBits", *inputs, name=name, domain=M, K=K, N=N, bits=4, block_size=32)
        return self.b.op("Add", y, self.b.constant(f"{name}.added", values)) if bias == "Add" else y

    def number(self, value):
        return self.b.constant(f"number{len(self.b.graph.initializers)}", np.array(value, self.dtype))

    def silu(self, x, swapped=False):
        factors = [x, self.b.op("Sigmoid", x)]
        return self.b.op("Mul", *(factors[::-1] if swapped else factors))

    def erf_sum(self, x, root=2**0.5, one=1.0):
        erf = self.b.op("Erf", self.b.op("Div", x, self.number(root)))
        return self.b.op("Add", erf, self.number(one))

    def gelu(self, x, order, **constants):
        total, op = self.erf_sum(x, **constants), self.b.op
        if order == "half last":
            return op("Mul", op("Mul", x, total), self.number(0.5))
        if order == "half of x":
            return op("Mul", op("Mul", self.number(0.5), x), total)
        return op("Mul", x, op("Mul", total, self.number(0.5)))

    def model(self, *outputs, columns=N):
        for y in outputs:
            self.b.output(y, [*self.rows, columns], self.kind)
        return ir.to_proto(self.b.model(10)).SerializeToString()


def run(session, rows, dtype=np.float32, more=()):
    x = 2 * np.random.default_rng(1).standard_normal((*rows, K)).astype(dtype)
    feeds = {"x": x, **{name: np.random.default_rng(2).standard_normal(shape).astype(dtype) for name, shape in more}}
    return session.run(None, feeds)


def check(model, expected, *, rows=((1, 1), (2, 5)), dtype=np.float32, tolerance=1e-5, more=(), **given):
    """Against stock ONNX Runtime, without its optimizations and with them."""
    session = ep.session(model, options(), **given)
    if KNOWS_WHO_RUNS_WHAT:
        assert taken(session) == sorted(expected)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        chosen = options(graph_optimization_level=level)
        chosen.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        stock = ort.InferenceSession(model, chosen, providers=["CPUExecutionProvider"])
        for shape in rows:
            inputs = [(name, (*shape, N)) for name in more]
            for got, want in zip(run(session, shape, dtype, inputs), run(stock, shape, dtype, inputs), strict=True):
                assert got.dtype == dtype
                np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())
