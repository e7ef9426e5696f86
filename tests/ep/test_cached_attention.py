"""GroupQueryAttention on the execution provider, against ONNX Runtime's own kernel, and what is left to it."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from onnxpress.custom_ops import reference
from pairs import all_pairs
from sessions import KNOWS_WHO_RUNS_WHAT, needs, options

INPUTS = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
    "position_ids", "attention_bias", "head_sink",
)  # fmt: skip


def feeds_of(rows=1, tokens=1, past=0, heads=2, kv_heads=1, size=16, room=0, packed=False, seed=0):
    """Of rows that all have the same past, in a buffer with room for more."""
    rng = np.random.default_rng(seed)

    def floats(*shape):
        return rng.standard_normal(shape, np.float32)

    total = past + tokens
    new = {"query": heads, "key": kv_heads, "value": kv_heads}
    if packed:
        new = {"query": heads + 2 * kv_heads}
    feeds = {name: floats(rows, tokens, count * size) for name, count in new.items()}
    feeds |= {name: floats(rows, kv_heads, past + room, size) for name in ("past_key", "past_value")}
    feeds["seqlens_k"] = np.full(rows, total - 1, np.int32)
    feeds["total_sequence_length"] = np.array(total, np.int32)
    return feeds


def model(feeds, heads=2, kv_heads=1, constants=(), size=16, dtype=ir.DataType.FLOAT, outputs=3, **attributes):
    b = graphs.Builder(18)
    b.graph.opset_imports["com.microsoft"] = 1
    inputs = []
    for name in INPUTS:
        array = feeds.get(name)
        if array is None:
            inputs.append(None)
        elif name in constants:
            inputs.append(b.constant(name, array))
        else:
            fixed = {"query": (2,), "past_key": (1, 3), "past_value": (1, 3), "head_sink": (0,)}.get(name, ())
            shape = [array.shape[i] if i in fixed else f"{name}{i}" for i in range(array.ndim)]
            kind = ir.DataType.from_numpy(array.dtype)
            inputs.append(b.input(name, shape, dtype if kind == ir.DataType.FLOAT else kind))
    while inputs[-1] is None:
        inputs.pop()
    made = b.op("GroupQueryAttention", *inputs, name="the_node", domain="com.microsoft", outputs=outputs,
                num_heads=heads, kv_num_heads=kv_heads, **attributes)  # fmt: skip
    for value, rank in zip(made, (3, 4, 4, 4), strict=False):
        b.output(value, [None] * rank, dtype)
    return ir.to_proto(b.model(10)).SerializeToString()


def stock(made, feeds):
    session = ort.InferenceSession(made, options(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def taken(session):
    return "the_node" in ep.assigned_nodes(session).get(ep.NAME, []) if KNOWS_WHO_RUNS_WHAT else None


def ours(made, feeds, threads=1, **settings):
    with_threads = options()
    with_threads.intra_op_num_threads = threads
    session = ep.session(made, with_threads, **settings)
    assert taken(session) in (True, None)
    return session.run(None, feeds)


def check(feeds, constants=(), **settings):
    made = model(feeds, constants=constants, **settings)
    feeds = {name: array for name, array in feeds.items() if name not in constants}
    got, want = ours(made, feeds), stock(made, feeds)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5)
    return got


@all_pairs(
    {
        "rows": [1, 2, 3],
        "tokens": [1, 2, 40],
        "past": [0, 1, 17, 300],
        "heads,kv_heads": [(1, 1), (6, 2), (8, 8), (7, 1)],
        "size": [8, 24, 64, 128],
        "room": [0, 5],
        "packed": [False, True],
    }
)
def test_numbers_of_onnx_runtime(rows, tokens, past, heads, kv_heads, size, room, packed):
    if tokens > 1 and past > 0:
        rows, room = 1, 0  # it has no kernel for several rows, nor for room that is left
    feeds = feeds_of(rows, tokens, past, heads, kv_heads, size, room, packed)
    check(feeds, heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize(("tokens", "past"), [(1, 20), (12, 0), (5, 9)])
@pytest.mark.parametrize("attributes", [{"scale": 0.7}, {"softcap": 1.5}, {"smooth_softmax": 1}])
def test_attributes(tokens, past, attributes):
    check(feeds_of(1, tokens, past), **attributes)


@needs("windows")
@pytest.mark.parametrize(("tokens", "past"), [(1, 20), (12, 0), (5, 9)])
@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("attributes", [{}, {"softcap": 2.0, "scale": 1.5}])
def test_windows(tokens, past, window, attributes):
    check(feeds_of(1, tokens, past), local_window_size=window, **attributes)


@pytest.mark.parametrize(("rows", "tokens", "past"), [(2, 1, 20), (3, 12, 0), (1, 5, 9)])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("half", [8, 16])
@pytest.mark.parametrize("packed", [False, True])
def test_rotation(rows, tokens, past, interleaved, half, packed):
    feeds = feeds_of(rows, tokens, past, 4, 2, size=32, packed=packed)
    angles = np.random.default_rng(1).uniform(-3, 3, (80, half)).astype(np.float32)
    feeds |= {"cos_cache": np.cos(angles), "sin_cache": np.sin(angles)}
    check(feeds, constants=("cos_cache", "sin_cache"), heads=4, kv_heads=2, do_rotary=1, rotary_interleaved=interleaved)
    if tokens > 1:
        feeds["position_ids"] = np.random.default_rng(2).integers(0, 64, (rows, tokens))
        check(feeds, heads=4, kv_heads=2, do_rotary=1, rotary_interleaved=interleaved)


@pytest.mark.parametrize("lead", [(1, 1), (3, 1), (1, 4), (3, 4)])
def test_bias(lead):
    feeds = feeds_of(3, 1, 30, 4, 2)
    bias = np.random.default_rng(1).standard_normal((*lead, 1, 31), np.float32)
    bias[..., :3] = np.finfo(np.float32).min
    check(feeds | {"attention_bias": bias}, heads=4, kv_heads=2)


def test_nan_in_a_bias_stays_in_its_row():
    feeds = feeds_of(2, 1, 30)
    bias = np.zeros((2, 1, 1, 31), np.float32)
    bias[1, 0, 0, 5] = np.nan
    y, *_ = check(feeds | {"attention_bias": bias})
    assert np.isnan(y[1]).all()
    assert not np.isnan(y[0]).any()


def test_rows_with_pasts_of_their_own():
    feeds = feeds_of(3, 1, 20)
    feeds["seqlens_k"] = np.array([20, 0, 7], np.int32)
    check(feeds)


def test_first_prompt_padded_on_the_right():
    feeds = feeds_of(2, 6, 0)
    feeds["seqlens_k"] = np.array([5, 2], np.int32)
    made = model(feeds)
    got, want = ours(made, feeds), stock(made, feeds)
    np.testing.assert_allclose(got[0][1, :3], want[0][1, :3], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(got[0][0], want[0][0], rtol=2e-5, atol=2e-5)


def test_several_rows_of_several_tokens_on_a_past():
    """ONNX Runtime refuses them."""
    rows, tokens, past, size = 3, 4, 9, 16
    feeds = feeds_of(rows, tokens, past, size=size)
    got = ours(model(feeds), feeds)
    new = [feeds[name].reshape(rows, tokens, -1, size) for name in ("query", "key", "value")]
    kept = np.full(rows, past, np.int64)
    want = reference.cached_attention(
        *new, feeds["past_key"], feeds["past_value"], kept, kept + tokens, present_size=past + tokens, scale=size**-0.5
    )
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g.reshape(w.shape), w, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [(0, 1, 4), (0, 3, 0), (1, 0, 4), (1, 0, 0)])
def test_nothing(sizes):
    rows, tokens, past = sizes
    feeds = feeds_of(rows, tokens, past)
    y, keys, values = ours(model(feeds), feeds)
    assert y.shape == (rows, tokens, 32)
    assert keys.shape == (rows, 1, past + tokens, 16)
    np.testing.assert_array_equal(keys[:, :, :past], feeds["past_key"])
    np.testing.assert_array_equal(values[:, :, :past], feeds["past_value"])


@pytest.mark.parametrize(("tokens", "past"), [(1, 2000), (1, 700), (300, 0)])
def test_threads_change_no_bit(tokens, past):
    feeds = feeds_of(1, tokens, past, 4, 2)
    made = model(feeds, heads=4, kv_heads=2)
    for one, several in zip(ours(made, feeds, 1), ours(made, feeds, 4), strict=True):
        np.testing.assert_array_equal(one, several)


def test_growing_past_in_one_session():
    rng = np.random.default_rng(3)
    first = feeds_of(2, 6, 0, 4, 2)
    made = model(first, heads=4, kv_heads=2)
    session, beside = ep.session(made, options()), ort.InferenceSession(made, options())
    feeds = first
    for step in range(70):
        got, want = session.run(None, feeds), beside.run(None, feeds)
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5)
        feeds = {
            name: rng.standard_normal((2, 1, n), np.float32) for name, n in (("query", 64), ("key", 32), ("value", 32))
        }
        feeds |= {"past_key": want[1], "past_value": want[2], "seqlens_k": np.full(2, 6 + step, np.int32)}
        feeds["total_sequence_length"] = np.array(7 + step, np.int32)


def test_one_buffer_for_past_and_present():
    feeds = feeds_of(2, 1, 20, 4, 2, room=12)
    made = model(feeds, heads=4, kv_heads=2)
    want = stock(made, feeds)
    session = ep.session(made, options())
    binding = session.io_binding()
    buffers = {name: ort.OrtValue.ortvalue_from_numpy(feeds[name].copy()) for name in ("past_key", "past_value")}
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, buffers.get(name) or ort.OrtValue.ortvalue_from_numpy(array))
    outputs = [each.name for each in session.get_outputs()]
    binding.bind_output(outputs[0])
    for name, buffer in zip(outputs[1:], buffers.values(), strict=True):
        binding.bind_ortvalue_output(name, buffer)
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(binding.get_outputs()[0].numpy(), want[0], rtol=2e-5, atol=2e-5)
    for name, w in zip(buffers, want[1:], strict=True):
        got = buffers[name].numpy()
        np.testing.assert_array_equal(got[:, :, :20], feeds[name][:, :, :20])
        np.testing.assert_array_equal(got[:, :, 20], w[:, :, 20])
        np.testing.assert_array_equal(got[:, :, 21:], feeds[name][:, :, 21:])  # as it was


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seqlens_k": np.array([-1], np.int32)}, "seqlens_k has -1 for row 0, must be 0 to 20"),
        ({"seqlens_k": np.array([21], np.int32)}, "seqlens_k has 21 for row 0"),
        ({"seqlens_k": np.array([2**31 - 1], np.int32)}, "seqlens_k has 2147483647"),
        ({"seqlens_k": np.array([20, 20], np.int32)}, "must have a number for each of 1 rows"),
        ({"total_sequence_length": np.array(-2, np.int32)}, "total_sequence_length is -2"),
        ({"past_value": np.zeros((1, 1, 19, 16), np.float32)}, "past_value has shape"),
        ({"key": np.zeros((1, 2, 16), np.float32)}, "key has shape"),
        ({"attention_bias": np.zeros((1, 1, 1, 20), np.float32)}, "attention_bias has shape"),
        ({"attention_bias": np.zeros((1, 3, 1, 21), np.float32)}, "attention_bias has shape"),
    ],
)
def test_what_lies_is_an_error(changes, message):
    feeds = feeds_of(1, 1, 20) | changes
    with pytest.raises(Exception, match=message) as error:
        ours(model(feeds), feeds)
    assert "the_node" in str(error.value)


@pytest.mark.parametrize("positions", [None, np.array([[-1]]), np.array([[8]])])
def test_positions_beyond_the_table_are_an_error(positions):
    feeds = feeds_of(1, 1, 8, size=16)
    feeds |= {"cos_cache": np.ones((8, 8), np.float32), "sin_cache": np.zeros((8, 8), np.float32)}
    if positions is not None:
        feeds["position_ids"] = positions
    with pytest.raises(Exception, match="a token has position"):
        ours(model(feeds, do_rotary=1), feeds)


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime does not tell who runs what")
@pytest.mark.parametrize("changes", [{"dtype": ir.DataType.FLOAT16}, {"size": 264}, {"isa": "scalar"}])
def test_what_is_left(changes):
    feeds = feeds_of(1, 1, 4, size=changes.get("size", 16))
    made = model(feeds, dtype=changes.get("dtype", ir.DataType.FLOAT))
    settings = {"isa": changes["isa"]} if "isa" in changes else {}
    assert not taken(ep.session(made, options(), **settings))
