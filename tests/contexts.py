"""Models to be compiled and saved."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
from onnxpress import ep
from onnxpress.custom_ops import reference
from onnxpress.optimizer import compile_context
from sessions import options


def nbits_model(
    bits=4, *, K=96, N=37, count=1, zero_points=None, bias=None, activation=np.float32, level=0, same=False
):
    """The sum of the Tanh of products of the same rows, with equal weights or with others."""
    rng = np.random.default_rng(bits)
    domain = "com.microsoft" if bits in (2, 4, 8) else "onnxpress"
    b = graphs.Builder()
    kind = ir.DataType.from_numpy(np.dtype(activation))
    a, total, shape = b.input("A", ["m", K], kind), None, (N, K // 32)
    for index in range(count):
        rng = np.random.default_rng(bits) if same else rng
        codes = reference.pack_codes(rng.integers(0, 2**bits, (*shape, 32), dtype=np.uint8), bits)
        scales = rng.uniform(0.01, 0.02, shape).astype(activation)
        inputs = [a, b.constant(f"B{index}", codes), b.constant(f"scales{index}", scales), None]
        if zero_points == "packed":
            points = reference.pack_zero_points(rng.integers(0, 2**bits, shape, dtype=np.uint8), bits)
            inputs[3] = b.constant(f"zeros{index}", points)
        elif zero_points == "float":
            inputs[3] = b.constant(f"zeros{index}", rng.uniform(0, 2**bits, shape).astype(activation))
        if domain == "com.microsoft":
            inputs.append(None)
        values = rng.standard_normal(N).astype(activation)
        if bias == "constant":
            inputs.append(b.constant(f"bias{index}", values))
        elif bias == "input":
            inputs.append(b.input(f"bias{index}", [N], kind))
        while inputs[-1] is None:
            inputs.pop()
        settings = {"K": K, "N": N, "bits": bits, "block_size": 32, "accuracy_level": level}
        y = b.op("Tanh", b.op("MatMulNBits", *inputs, name=f"product{index}", domain=domain, **settings))
        total = y if total is None else b.op("Add", total, y)
    b.output(total, ["m", N], kind)
    b.graph.opset_imports[domain] = 1
    return b.model(10)


def feeds_of(session, M=5):
    rng = np.random.default_rng(1)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        value.name: rng.standard_normal([M if isinstance(n, str) else n for n in value.shape]).astype(kinds[value.type])
        for value in session.get_inputs()
    }


def compiled(folder, model, **given):
    """A model on the disk, its context model, and the file of weights."""
    path = folder / "model.onnx"
    ir.save(model, path)
    report = compile_context(path, **given)
    return path, folder / "model.ctx.onnx", folder / report.weights


def run(path, **given):
    session = ep.session(path, options(), **given)
    return session.run(None, feeds_of(session))[0]
