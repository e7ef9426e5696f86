"""MultiHeadAttention on the execution provider, with what stands before it, against ONNX Runtime, and what is left."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import ep
from pairs import all_pairs
from sessions import KNOWS_WHO_RUNS_WHAT, options

MICROSOFT = "com.microsoft"
HEADS, SIZE = 4, 32
INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


def plain(bias=None, mask=None, keys="tokens", rank=3, constant_bias=(), **attributes):
    """A node alone; `mask` is the shape of the padding, `bias` of what is added to scores."""
    b = graphs.Builder(18)
    b.graph.opset_imports[MICROSOFT] = 1
    wide = ["batch", None, HEADS * SIZE]
    query = b.input("query", [wide[0], "tokens", wide[2]])
    key, value = (b.input(name, [wide[0], keys, wide[2]] if rank == 3 else None) for name in ("key", "value"))
    inputs = [query, key, value, None, None, None]
    if mask:
        inputs[4] = b.input("mask", mask, INT32)
    if bias:
        inputs[5] = b.input("bias", bias)
    if constant_bias:
        inputs[3] = b.constant("projection", np.ones(3 * HEADS * SIZE, np.float32))
    while inputs[-1] is None:
        inputs.pop()
    attributes = {"num_heads": HEADS} | attributes
    b.output(b.op("MultiHeadAttention", *inputs, name="the_node", domain=MICROSOFT, **attributes), [None] * 3)
    return ir.to_proto(b.model(10)).SerializeToString()


def feeds_for(session, seed=0, **sizes):
    rng = np.random.default_rng(seed)
    feeds = {}
    for each in session.get_inputs():
        shape = [sizes.get(size, size) for size in each.shape]
        if each.type == "tensor(float)":
            feeds[each.name] = rng.standard_normal(shape).astype(np.float32)
            if each.name in ("cosines", "sines"):
                angles = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
                feeds[each.name] = np.cos(angles) if each.name == "cosines" else np.sin(angles)
        else:
            feeds[each.name] = np.asarray(rng.integers(0, 2 if each.name == "mask" else 16, shape), each.type[7:-1])
    return feeds


def sessions(made, claim="attention"):
    stock = ort.InferenceSession(made, options(), providers=["CPUExecutionProvider"])
    return stock, ep.session(made, options(), **({"claim": claim} if claim else {}))


def check(made, expected, sizes, claim="attention"):
    stock, ours = sessions(made, claim)
    if KNOWS_WHO_RUNS_WHAT:
        assert set(ep.assigned_nodes(ours).get(ep.NAME, [])) == expected
    feeds = feeds_for(stock, **sizes)
    for got, want in zip(ours.run(None, feeds), stock.run(None, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=5e-5, atol=5e-5)


@all_pairs(
    {
        "batch": [1, 3],
        "tokens": [1, 5, 40, 70],
        "added": [
            {},
            {"mask": ["batch", "tokens"]},
            {"mask": ["batch", "tokens"], "mask_filter_value": -1e9},
            {"bias": [1, 1, "tokens", "tokens"]},
            {"bias": ["batch", HEADS, "tokens", "tokens"]},
            {"unidirectional": 1},
            {"scale": 0.5},
        ],
    }
)
def test_alone(batch, tokens, added):
    check(plain(**added), {"the_node"}, {"batch": batch, "tokens": tokens})


def test_without_more_it_is_left_to_onnx_runtime():
    check(plain(), set(), {"batch": 2, "tokens": 9}, claim=None)
    check(grouped(HEADS, ("split",)), set(), {"batch": 2, "tokens": 9}, claim=None)


@pytest.mark.parametrize(("kv_heads", "parts"), [(1, ()), (HEADS, ("norm",)), (HEADS, ("turn",))])
def test_with_more_it_is_taken(kv_heads, parts):
    expected = {"the_node"} | (REPEATS if kv_heads == 1 else set())
    expected |= (NORMS if "norm" in parts else set()) | (TURNS if "turn" in parts else set())
    check(grouped(kv_heads, parts), expected, {"batch": 2, "tokens": 9}, claim=None)


@pytest.mark.parametrize(("tokens", "keys"), [(3, 40), (40, 3), (1, 200)])
def test_keys_of_another_text(tokens, keys):
    made = plain(mask=["batch", "keys"], keys="keys")
    check(made, {"the_node"}, {"batch": 2, "tokens": tokens, "keys": keys})


@pytest.mark.parametrize("sizes", [{"batch": 0, "tokens": 3}, {"batch": 2, "tokens": 0}])
def test_nothing(sizes):
    _, ours = sessions(plain())
    (made,) = ours.run(None, feeds_for(ours, **sizes))
    assert made.shape == (sizes["batch"], sizes["tokens"], HEADS * SIZE)


def test_no_keys_at_all_give_zeros():
    _, ours = sessions(plain(keys="keys"))
    (made,) = ours.run(None, feeds_for(ours, batch=2, tokens=3, keys=0))
    assert made.shape == (2, 3, HEADS * SIZE)
    assert not made.any()


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"mask": ["batch"]}, {"batch": 2, "tokens": 3}),
        ({"constant_bias": (1,)}, {"batch": 2, "tokens": 3}),
        ({"mask": ["batch", "tokens"], "bias": [1, 1, "tokens", "tokens"]}, {"batch": 2, "tokens": 3}),
    ],
)
def test_what_is_left(changes, sizes):
    _, ours = sessions(plain(**changes))
    if KNOWS_WHO_RUNS_WHAT:
        assert "the_node" not in ep.assigned_nodes(ours).get(ep.NAME, [])
    feeds = feeds_for(ours, **sizes)
    if changes.get("mask") == ["batch"]:
        feeds["mask"] = np.array([3, 2], np.int32)
    ours.run(None, feeds)


def test_a_mask_of_another_size_is_an_error():
    _, ours = sessions(plain(mask=["rows", "other"]))
    feeds = feeds_for(ours, batch=2, tokens=3, rows=2, other=4)
    with pytest.raises(Exception, match=r"key_padding_mask has shape \[2, 4\], must be \[2, 3\]"):
        ours.run(None, feeds)


def grouped(kv_heads=1, parts=("split", "norm", "turn"), seen=None, epsilon=1e-6):
    """As encoders with grouped heads have it: a product cut in three, norms, rotations, keys and values repeated."""
    b = graphs.Builder(18)
    b.graph.opset_imports[MICROSOFT] = 1
    widths = [HEADS * SIZE, kv_heads * SIZE, kv_heads * SIZE]
    if "split" in parts:
        x = b.input("x", ["batch", "tokens", sum(widths)])
        made = b.op("Split", x, b.constant("sizes", np.array(widths)), name="split", outputs=3, axis=-1)
    else:
        made = [b.input(name, ["batch", "tokens", width]) for name, width in zip("qkv", widths, strict=True)]
    values = dict(zip("qkv", made, strict=True))
    rng = np.random.default_rng(3)
    for name, heads in (("q", HEADS), ("k", kv_heads)):
        if "norm" in parts:
            scale = b.constant(f"{name}_scale", rng.uniform(0.5, 1, SIZE).astype(np.float32))
            apart = b.op("Reshape", values[name], b.constant(f"{name}_apart", np.array([0, 0, heads, SIZE])),
                         name=f"{name}_apart")  # fmt: skip
            normal = b.op("SimplifiedLayerNormalization", apart, scale, name=f"{name}_norm", axis=-1, epsilon=epsilon,
                          stash_type=1)  # fmt: skip
            values[name] = b.op("Reshape", normal, b.constant(f"{name}_whole", np.array([0, 0, heads * SIZE])),
                                name=f"{name}_whole")  # fmt: skip
            values[name].shape = ir.Shape(["batch", "tokens", heads * SIZE])
    if "turn" in parts:
        positions = b.input("positions", ["batch", "tokens"], INT64)
        tables = [b.input(name, [64, SIZE // 2]) for name in ("cosines", "sines")]
        for name, heads in (("q", HEADS), ("k", kv_heads)):
            values[name] = b.op("RotaryEmbedding", values[name], positions, *tables, name=f"{name}_turn",
                                domain=MICROSOFT, num_heads=heads)  # fmt: skip
            values[name].shape = ir.Shape(["batch", "tokens", heads * SIZE])
    repeated = {}
    for name in "kv" if kv_heads < HEADS else "":
        once = [values[name]]
        if kv_heads > 1:
            sizes = b.constant(f"{name}_sizes", np.array([SIZE] * kv_heads))
            once = b.op("Split", values[name], sizes, name=f"{name}_heads", outputs=kv_heads, axis=2)
        every = [head for head in once for _ in range(HEADS // kv_heads)]
        repeated[name] = b.op("Concat", *every, name=f"{name}_repeated", axis=2)
        repeated[name].shape = ir.Shape(["batch", "tokens", HEADS * SIZE])
    inputs = [(values | repeated)[name] for name in "qkv"]
    b.output(b.op("MultiHeadAttention", *inputs, name="the_node", domain=MICROSOFT, num_heads=HEADS), [None] * 3)
    if seen:
        b.output((values | {f"{name}_repeated": value for name, value in repeated.items()})[seen], [None] * 3)
    return ir.to_proto(b.model(10)).SerializeToString()


NORMS = {f"{name}_{part}" for name in "qk" for part in ("apart", "norm", "whole")}
TURNS = {"q_turn", "k_turn"}
REPEATS = {"k_repeated", "v_repeated"}


@pytest.mark.parametrize("tokens", [1, 6, 48])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("parts", [("split", "norm", "turn"), ("split", "turn"), ("norm",), ()])
def test_all_before_it_runs_within(tokens, kv_heads, parts):
    expected = {"the_node"} | (NORMS if "norm" in parts else set()) | (TURNS if "turn" in parts else set())
    expected |= {"split"} if "split" in parts else set()
    if kv_heads < HEADS:
        expected |= REPEATS | ({"k_heads", "v_heads"} if kv_heads > 1 else set())
    check(grouped(kv_heads, parts), expected, {"batch": 2, "tokens": tokens})


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ("v", {"the_node", *REPEATS, *NORMS, *TURNS}),
        ("k_repeated", {"the_node"}),  # queries are not rotated without the keys
        ("v_repeated", {"the_node"}),
    ],
)
def test_what_others_see_stays_outside(seen, expected):
    check(grouped(seen=seen), expected, {"batch": 2, "tokens": 5})
