"""Random graphs behind products: the same numbers as without the execution provider."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
from fuzzing import SETTINGS, close
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def followed(draw):
    """Two products and a random graph behind them, in which activations and gates occur, whole and spoiled."""
    rng, N, K = np.random.default_rng(draw(st.integers(0, 99))), draw(st.sampled_from([1, 5, 33])), 32
    b = graphs.Builder(20)
    b.graph.opset_imports["com.microsoft"] = 1
    arrays = {"A": rng.standard_normal((3, K)).astype(np.float32)}
    A = b.input("A", ["m", K])

    def product(name):
        codes = b.constant(f"{name}.codes", rng.integers(0, 256, (N, 1, 16), dtype=np.uint8))
        scales = b.constant(f"{name}.scales", rng.uniform(0.01, 0.1, (N, 1)).astype(np.float32))
        return b.op("MatMulNBits", A, codes, scales, domain="com.microsoft", K=K, N=N, bits=4, block_size=32)

    values = [product("first")]
    for dims, shape in draw(st.lists(st.sampled_from([(["m", N], (3, N)), (["n", N], (3, N)), ([1, N], (1, N))]))):
        name = f"up{len(b.graph.inputs)}"
        arrays[name] = rng.standard_normal(shape).astype(np.float32)
        values.insert(0, b.input(name, dims))
    if draw(st.booleans()):
        values.append(product("second"))
    recent = st.sampled_from([-1, -1, -1, -1, -2, -3]).map(lambda back: max(back, -len(values)))
    for _ in range(draw(st.integers(1, 6))):
        x, y = values[draw(recent)], values[draw(recent)]
        step = draw(st.sampled_from(["Relu", "Gelu", "Sigmoid", "Mul", "gate", "gate", "silu", "silu", "gelu"]))
        if step == "silu":
            sigmoid = b.op("Sigmoid", x)
            values += [*draw(st.sampled_from([[], [], [sigmoid]])), b.op("Mul", *draw(st.permutations([x, sigmoid])))]
        elif step == "gate":
            values.append(b.op("Mul", *draw(st.permutations([x, values[0]]))))
        elif step == "gelu":
            root = b.constant(f"root{len(b.graph)}", np.float32(draw(st.sampled_from([2**0.5, 2**0.5, 1.5]))))
            one, half = (b.constant(f"{n}{len(b.graph)}", np.float32(n)) for n in (1, 0.5))
            total = b.op("Add", b.op("Erf", b.op("Div", x, root)), one)
            factors = draw(st.permutations([x, total, half]))
            values.append(b.op("Mul", b.op("Mul", *factors[:2]), factors[2]))
        else:
            values.append(b.op(step, *([x, y] if step == "Mul" else [x])))
    inner = [value for value in values if value.producer() is not None]
    for value in {inner[-1], draw(st.sampled_from([*inner, *[inner[-1]] * 5]))}:
        b.output(value, [None, None])
    return ir.to_proto(b.model(10)).SerializeToString(), arrays


@SETTINGS
@given(followed())
def test_what_follows_a_product(child, graph):
    model, feeds = graph
    got, stock = child.run(model, feeds, provider=True), child.run(model, feeds, provider=False)
    assert not isinstance(got, str), got
    for ours, theirs in zip(got, stock, strict=True):
        assert close(ours, theirs.astype(np.float64))
