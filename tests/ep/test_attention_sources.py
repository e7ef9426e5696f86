"""Nodes before an attention that run within it: the rotations of queries and keys, and the split of their product."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from sessions import KNOWS_WHO_RUNS_WHAT, options

HEADS, KV_HEADS, SIZE = 4, 2, 32
WIDTHS = (HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE)
MICROSOFT = "com.microsoft"
ALL = {"split", "turn_query", "turn_key", "the_node"}


def model(parts=("split", "turn"), seen=None, others=None, rank=2, half=SIZE // 2, **rotation):
    """Of a packed product or three, rotated by nodes of their own or not.

    `seen` is a value that the graph gives out too; `others` has keys turn by positions of their own.
    """
    b = graphs.Builder(18)
    b.graph.opset_imports[MICROSOFT] = 1
    ints, packed = ir.DataType.INT64, sum(WIDTHS)
    if "split" in parts:
        x = b.input("x", ["batch", "tokens", packed])
        made = b.op("Split", x, b.constant("sizes", np.array(WIDTHS)), name="split", outputs=3, axis=-1)
    else:
        made = [b.input(name, ["batch", "tokens", width]) for name, width in zip("qkv", WIDTHS, strict=True)]
    values = dict(zip("qkv", made, strict=True))
    if "turn" in parts:
        shape = ["batch", "tokens"] if rank == 2 else [1]
        positions = [b.input("positions", shape, ints)] * 2
        if others:
            positions[1] = b.input("others", shape, ints)
        tables = [b.input(name, ["most", half]) for name in ("cosines", "sines")]
        settings = {"interleaved": 0} | rotation
        for name, key, heads, where in (("turn_query", "q", HEADS, 0), ("turn_key", "k", KV_HEADS, 1)):
            values[key] = b.op("RotaryEmbedding", values[key], positions[where], *tables, name=name, domain=MICROSOFT,
                               num_heads=heads, **settings)  # fmt: skip
    past = [b.input(name, ["batch", KV_HEADS, "past", SIZE]) for name in ("keys", "values")]
    lengths = b.input("lengths", ["batch"], ir.DataType.INT32)
    total = b.input("total", [], ir.DataType.INT32)
    outputs = b.op("GroupQueryAttention", values["q"], values["k"], values["v"], *past, lengths, total, name="the_node",
                   domain=MICROSOFT, outputs=3, num_heads=HEADS, kv_num_heads=KV_HEADS)  # fmt: skip
    for value, size in zip(outputs, (3, 4, 4), strict=True):
        b.output(value, [None] * size)
    if seen is not None:
        b.output(values[seen], [None] * 3)
    return ir.to_proto(b.model(10)).SerializeToString()


def feeds_for(session, rows=1, tokens=1, past=9):
    rng = np.random.default_rng(0)
    sizes = {"batch": rows, "tokens": tokens, "past": past, "most": 64}
    feeds = {}
    for each in session.get_inputs():
        shape = [sizes.get(size, size) for size in each.shape]
        if each.type == "tensor(int64)":
            feeds[each.name] = rng.integers(0, 40, shape)
        else:
            feeds[each.name] = rng.uniform(-1, 1, shape).astype(np.float32)
    feeds["lengths"] = np.full(rows, past + tokens - 1, np.int32)
    feeds["total"] = np.array(past + tokens, np.int32)
    return feeds


def check(made, expected, **sizes):
    stock = ort.InferenceSession(made, options(), providers=["CPUExecutionProvider"])
    ours = ep.session(made, options())
    if KNOWS_WHO_RUNS_WHAT:
        assert set(ep.assigned_nodes(ours).get(ep.NAME, [])) == expected
    feeds = feeds_for(stock, **sizes)
    for got, want in zip(ours.run(None, feeds), stock.run(None, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


SIZES = [{"rows": 2}, {"tokens": 5}, {"rows": 2, "tokens": 5, "past": 0}]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [1, 2])
def test_all_three(sizes, interleaved, rank):
    check(model(rank=rank, interleaved=interleaved), ALL, **sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_rotation_of_a_part(sizes):
    check(model(half=8, rotary_embedding_dim=16), ALL, **sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_one_kind_alone(sizes):
    check(model(("split",)), {"split", "the_node"}, **sizes)
    check(model(("turn",)), ALL - {"split"}, **sizes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seen": "v"}, ALL - {"split"}),
        ({"seen": "q"}, {"the_node"}),
        ({"others": True}, {"the_node"}),
        ({"scale": 2.0}, {"the_node"}),
    ],
)
def test_what_stays_outside(changes, expected):
    check(model(**changes), expected, tokens=3)


def test_positions_beyond_the_table_are_an_error():
    made = model()
    session = ep.session(made, options())
    feeds = feeds_for(session, tokens=2)
    for wrong in (-1, 64):
        feeds["positions"] = np.array([[3, wrong]])
        with pytest.raises(Exception, match=f"a token has position {wrong}"):
            session.run(None, feeds)
