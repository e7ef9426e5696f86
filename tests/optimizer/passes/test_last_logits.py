"""Logits of the last token alone are those that the last token had."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoder_layers import VOCABULARY, Decoder, feeds
from onnxpress.optimizer.passes.last_logits import LastLogits
from sessions import options


def run(model, fed):
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options()).run(None, fed)


@pytest.mark.parametrize("cap", [False, True])
def test_the_last_token_says_the_same(cap):
    decoder = Decoder()
    if cap:
        logits = decoder.graph.outputs[0]
        inner = decoder.op("Div", logits, decoder.one(3.0))
        decoder.graph.outputs.pop(0)
        decoder.output(
            decoder.op("Mul", decoder.op("Tanh", inner), decoder.one(3.0)), ["batch", "sequence", VOCABULARY]
        )
        decoder.graph.outputs.insert(0, decoder.graph.outputs.pop())
    fed = feeds(decoder.made, 2, 5, 0, [0, 2])
    want = run(decoder.made, fed)
    last = LastLogits()
    assert last(decoder.made).modified
    assert last.output == decoder.graph.outputs[0].name
    assert list(decoder.graph.outputs[0].shape)[1:] == [1, VOCABULARY]
    got = run(decoder.made, fed)
    np.testing.assert_allclose(got[0], want[0][:, -1:], atol=1e-5)
    for one, other in zip(got[1:], want[1:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("past", [0, 3])
def test_padding_behind_a_row_is_no_last_token(past):
    decoder = Decoder()
    fed = feeds(decoder.made, 3, 5, past, [0, 0, 0])
    fed["attention_mask"][1, past + 2 :] = 0
    fed["attention_mask"][2, past:] = 0  # nothing new counts
    want = run(decoder.made, fed)[0]
    assert LastLogits()(decoder.made).modified
    np.testing.assert_allclose(run(decoder.made, fed)[0][:, 0], want[[0, 1, 2], [4, 1, 4]], atol=1e-5)


def test_sizes_that_are_noted_are_true():
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(Decoder(norms="layer").made)))
    assert LastLogits()(model).modified
    (cut,) = (node for node in model.graph if node.op_type == "GatherND")
    assert cut.inputs[0].shape is not None
    onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)


@pytest.mark.parametrize("change", ["two lengths", "no such name"])
def test_a_mask_of_other_tokens_is_not_read(change):
    decoder = Decoder()
    if change == "two lengths":
        decoder.input("decoder_input_ids", ["batch", "decoder sequence"], ir.DataType.INT64)
    else:
        decoder.seen.name = "encoder_attention_mask"
    assert LastLogits()(decoder.made).modified
    assert "ArgMax" not in {node.op_type for node in decoder.graph}


def test_a_model_without_logits_is_left():
    decoder = Decoder()
    decoder.graph.outputs.pop(0)
    last = LastLogits()
    assert not last(decoder.made).modified
    assert list(last.left) == [""]
