"""Models that use types of few bits before their opset or their file format has them."""

from __future__ import annotations

import graphs
import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.model_io import storage


def decoded(opset: int, ir_version: int, kind: type) -> ir.Model:
    b = graphs.Builder(opset)
    codes = b.constant("codes", np.zeros((64, 48), kind))
    w = b.op("DequantizeLinear", codes, b.constant("scale", np.float32(1)), name="decode")
    b.output(b.op("MatMul", b.input("x", ["n", 64]), w, name="product"), ["n", 48])
    return b.model(ir_version)


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4])
def test_what_is_refused(tmp_path, kind):
    opset, version = (21, 10) if kind is ml_dtypes.int4 else (19, 9)
    name = ir.DataType.from_numpy(np.dtype(kind)).name
    ir.save(decoded(opset, version, kind), tmp_path / "m.onnx")
    assert storage.load(tmp_path / "m.onnx").ir_version == version
    ir.save(decoded(opset, version - 1, kind), tmp_path / "m.onnx")
    says = rf"m.onnx: tensor 'codes' is of {name}, which IR version {version - 1} does not know"
    with pytest.raises(OnnxpressError, match=says):
        optimize(tmp_path / "m.onnx")
    ir.save(decoded(opset - 1, version, kind), tmp_path / "m.onnx")
    with pytest.raises(
        OnnxpressError, match=rf"node 'decode' \(DequantizeLinear\) uses {name}, which opset {opset - 1}"
    ):
        optimize(tmp_path / "m.onnx")


def test_other_domains_have_their_own_types(tmp_path):
    b = graphs.Builder(17)
    codes = b.constant("codes", np.zeros((64, 48), ml_dtypes.float8_e4m3fn))
    b.graph.opset_imports["example"] = 1
    b.output(b.op("Decode", b.input("x", ["n", 64]), codes, domain="example"), ["n", 48])
    ir.save(b.model(9), tmp_path / "m.onnx")
    storage.load(tmp_path / "m.onnx")
