"""Models to be cleaned up, and that they then compute what they did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnxpress.optimizer.passes.clean_up import CleanUp
from rewrites import LEVELS, run

X = {"x": np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)}
node = helper.make_node


def info(name, shape=None, kind=onnx.TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, outputs=("y",), *, inputs=(), constants=None, opset=17, functions=(), domains=()):
    """Inputs x [4, 6] and those given; constants are initializers, and inputs too where they are given as inputs."""
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", [4, 6]), *inputs],
        [info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid(domain, 1) for domain in domains]
    return ir.from_proto(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset), *imports], ir_version=9, functions=functions
        )
    )


def branch(nodes, output, constants=()):
    return helper.make_graph(nodes, f"branch_{output}", [], [info(output)], list(constants))


def cleaned(model, without=()):
    result, clean_up = model.clone(), CleanUp(without)
    clean_up(result)
    assert not clean_up.warnings
    return result


def check(model, *feeds, result=None):
    """The cleaned model computes what the original does, at all levels of optimization."""
    result = cleaned(model) if result is None else result
    for fed in feeds or (X,):
        for level in LEVELS:
            for a, b in zip(run(model, fed, level), run(result, fed, level), strict=True):
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    return result


def function(name, outputs, nodes, *, inputs=("a",), opset=17, domain="my", **more):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    return helper.make_function(domain, name, list(inputs), list(outputs), nodes, imports, **more)
