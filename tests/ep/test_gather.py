"""GatherBlockQuantized on the execution provider: the numbers of ONNX Runtime to the last bit, and what is left."""

from __future__ import annotations

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from child import Child, CrashError
from onnxpress import ep
from onnxpress.custom_ops import reference
from pairs import all_pairs
from sessions import KNOWS_WHO_RUNS_WHAT, options

ROWS, COLUMNS = 40, 112
OLD = ort.__version__.startswith("1.23.")


class Table:
    """Random codes, scales and zero points, and how they are stored."""

    def __init__(self, kind="uint8", bits=4, block_size=32, scale=np.float32, zero_points=True, shape=(ROWS, COLUMNS)):
        rng = np.random.default_rng(0)
        blocks = (shape[0], -(-shape[1] // block_size))
        low = -8 if kind == "int4" else 0
        self.block_size, self.bits, self.kind = block_size, bits, kind
        self.codes = rng.integers(low, low + 2**bits, shape)
        self.scales = rng.uniform(-0.1, 0.1, blocks).astype(scale)
        default = 2 ** (bits - 1) if kind == "uint8" else 0
        self.zero_points = rng.integers(low, low + 2**bits, blocks) if zero_points else np.full(blocks, default)
        self.arrays = {"data": self.stored(self.codes), "scales": self.scales}
        if zero_points:
            self.arrays["zero_points"] = self.stored(self.zero_points)

    def stored(self, codes):
        if self.kind != "uint8":
            return codes.astype(getattr(ml_dtypes, self.kind))
        return reference.pack_codes(codes.astype(np.uint8), self.bits)

    def model(self, rank=1, index=np.int64, constant=True, **attributes):
        b = graphs.Builder(21)
        b.graph.opset_imports["com.microsoft"] = 1
        indices = b.input("indices", [f"n{axis}" for axis in range(rank)], ir.DataType.from_numpy(np.dtype(index)))

        def value(name):
            array = self.arrays.get(name)
            if array is None:
                return None
            if constant or name != "data":
                return b.constant(name, array)
            return b.input(name, array.shape, ir.DataType.from_numpy(array.dtype))

        inputs = [value("data"), indices, value("scales"), value("zero_points")]
        while inputs[-1] is None:
            inputs.pop()
        settings = {"bits": self.bits, "block_size": self.block_size, "gather_axis": 0, "quantize_axis": 1} | attributes
        y = b.op("GatherBlockQuantized", *inputs, name="the_node", domain="com.microsoft", **settings)
        b.output(y, [*([None] * rank), None], ir.DataType.from_numpy(self.scales.dtype))
        return ir.to_proto(b.model(10)).SerializeToString()

    def want(self, indices):
        return reference.gather_rows(self.codes, indices, self.scales, self.zero_points, self.block_size)


def taken(session):
    """Whether the node is on the execution provider; unknown, so None, before ONNX Runtime 1.24."""
    return "the_node" in ep.assigned_nodes(session).get(ep.NAME, []) if KNOWS_WHO_RUNS_WHAT else None


def stock(model):
    return ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])


def check(table, indices, **changes):
    model = table.model(rank=indices.ndim, index=indices.dtype, **changes)
    session = ep.session(model, options())
    assert taken(session) in (True, None)
    (got,) = session.run(None, {"indices": indices})
    assert got.dtype == table.scales.dtype
    np.testing.assert_array_equal(got, table.want(indices))
    # ONNX Runtime 1.23 reads packed zero points as if rows did not begin at a byte.
    packed = table.kind == "uint8" and table.bits == 4 and "zero_points" in table.arrays
    if not (OLD and packed and table.scales.shape[1] % 2):
        np.testing.assert_array_equal(got, stock(model).run(None, {"indices": indices})[0])


INDICES = np.array([3, -1, 0, 3, ROWS - 1, -ROWS, 17], np.int64)


@all_pairs(
    {
        "kind,bits": [("uint8", 4), ("uint8", 8), ("int4", 4), ("uint4", 4)],
        "zero_points": [False, True],
        "scale": [np.float32, np.float16],
        "block_size": [16, 32, 128, 512],
    }
)
def test_types(kind, bits, zero_points, scale, block_size):
    check(Table(kind, bits, block_size, scale, zero_points), INDICES)


@pytest.mark.parametrize("kind", ["int4", "uint4"])
@pytest.mark.parametrize("scale", [np.float32, np.float16])
@pytest.mark.parametrize("columns", [1, 15, 33, 63, 81])
def test_rows_that_begin_in_the_middle_of_a_byte(kind, scale, columns):
    check(Table(kind, 4, 16, scale, shape=(ROWS, columns)), INDICES)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [2, 50, 1100])
def test_whole_rows_of_bytes(bits, columns):
    check(Table("uint8", bits, 16, np.float16, shape=(ROWS, columns)), INDICES)


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 0), (2, 2, 2)])
def test_shapes_of_indices(index, shape):
    check(Table(), np.random.default_rng(1).integers(-ROWS, ROWS, shape).astype(index))


def test_many_rows_on_many_threads():
    check(Table(shape=(ROWS, 1024)), np.random.default_rng(1).integers(-ROWS, ROWS, (64, 33)))


@pytest.mark.parametrize("attributes", [{"gather_axis": -2}, {"quantize_axis": -1}])
def test_axes_from_the_end(attributes):
    check(Table(), INDICES, **attributes)


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("scale", [np.float32, np.float16])
def test_indices_beyond_the_table(index, scale):
    """An error, as of the float table's Gather, where ONNX Runtime's kernel for these tables gives zeros."""
    info, table = np.iinfo(index), Table(scale=scale)
    session = ep.session(table.model(index=index), options())
    for beyond in (ROWS, -ROWS - 1, info.max, info.min):
        wrong = np.zeros(6000, index)
        wrong[-5] = beyond
        reason = f"GatherBlockQuantized node 'the_node': indices have {beyond}, must be {-ROWS} to {ROWS - 1}"
        with pytest.raises(Exception, match=reason):
            session.run(None, {"indices": wrong})
    inside = np.array([ROWS - 1, -ROWS, 0, -1], index)
    np.testing.assert_array_equal(session.run(None, {"indices": inside})[0], table.want(inside))


def test_a_table_of_an_outer_graph():
    """Constants come in at run time, wherever they are."""
    table = Table()
    model = onnx.load_from_string(table.model())
    graph = model.graph
    y = graph.output[0]
    branch = onnx.helper.make_graph(list(graph.node), "branch", [], [y])
    branch.output[0].name = branch.node[0].output[0] = "inner"
    zero = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [0])
    shape = onnx.helper.make_node("Constant", [], ["shape"], value_ints=[2, COLUMNS])
    zeros = onnx.helper.make_node("ConstantOfShape", ["shape"], ["zeros"], value=zero)
    other = onnx.helper.make_graph([shape, zeros], "other", [], [onnx.helper.make_value_info("zeros", y.type)])
    node = onnx.helper.make_node("If", ["c"], [y.name], then_branch=branch, else_branch=other)
    del graph.node[:]
    graph.node.append(node)
    graph.input.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    session = ep.session(model.SerializeToString(), options())
    assert taken(session) in (True, None)
    (got,) = session.run(None, {"indices": INDICES, "c": np.array(True)})
    np.testing.assert_array_equal(got, table.want(INDICES))


def test_a_gather_that_nothing_reads():
    table = Table()
    model = onnx.load_from_string(table.model())
    second = onnx.NodeProto.FromString(model.graph.node[0].SerializeToString())
    second.name, second.output[0] = "unread", "unread"
    model.graph.node.append(second)
    (got,) = ep.session(model.SerializeToString(), options()).run(None, {"indices": INDICES})
    np.testing.assert_array_equal(got, table.want(INDICES))


def test_one_table_for_a_gather_and_a_product():
    """The product packs its weight and lets ONNX Runtime drop it, the gather reads on in the same constant."""
    K, rng = 64, np.random.default_rng(0)
    b = graphs.Builder(21)
    b.graph.opset_imports["com.microsoft"] = 1
    codes, scales = rng.integers(0, 256, (ROWS, K // 2), dtype=np.uint8), np.ones((ROWS, K // 32), np.float32)
    data, scale = b.constant("data", codes), b.constant("scales", scales)
    settings = {"domain": "com.microsoft", "bits": 4, "block_size": 32}
    indices = b.input("indices", ["n"], ir.DataType.INT64)
    x = b.op("GatherBlockQuantized", data, indices, scale, gather_axis=0, quantize_axis=1, **settings)
    weight = b.constant("weight", codes.reshape(ROWS, K // 32, 16))
    b.output(b.op("MatMulNBits", x, weight, scale, K=K, N=ROWS, **settings), ["n", ROWS])
    model = ir.to_proto(b.model(10)).SerializeToString()
    (got,), (want,) = (each.run(None, {"indices": INDICES}) for each in (ep.session(model, options()), stock(model)))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 does not tell who runs what")
def test_claim():
    model = Table().model()
    assert taken(ep.session(model, options(), claim="gather"))
    assert not taken(ep.session(model, options(), claim="matmul_nbits"))


LEFT = {
    "data is an input": (Table(), {"constant": False}, "input data is no constant"),
    "other axes": (Table("int4", shape=(64, 64)), {"gather_axis": 1, "quantize_axis": 0}, "gather_axis is not 0"),
    "both axes": (
        Table("int4", shape=(64, 2)),
        {"gather_axis": 0, "quantize_axis": 0},
        "quantize_axis is not the last",
    ),
    "three axes": (Table("int4", shape=(4, 64)), {"gather_axis": 0, "quantize_axis": 2}, "input data has not two axes"),
    "2 bits": (Table("uint8", 2), {}, "bits is 2, not 4, or 8 of uint8"),
}


@pytest.mark.parametrize("what", list(LEFT))
def test_what_is_left(what, capfd):
    table, changes, reason = LEFT[what]
    if what == "three axes":
        table.arrays = {name: array[None] for name, array in table.arrays.items()}
    elif "axes" in what:  # blocks along the rows
        table.arrays["scales"] = np.resize(table.scales, (2, table.codes.shape[1]))
        table.arrays["zero_points"] = np.resize(table.arrays["zero_points"], (2, table.codes.shape[1]))
    model = table.model(**changes)
    if OLD and what in ("2 bits", "three axes"):
        pytest.skip("ONNX Runtime 1.23 has neither")
    feeds = {"indices": np.array([1, 0], np.int64)} | (
        {} if changes.get("constant", True) else {"data": table.arrays["data"]}
    )
    session = ep.session(model, options(log_severity_level=1))
    assert f"com.microsoft::GatherBlockQuantized node 'the_node': {reason}" in (err := capfd.readouterr().err), err
    assert taken(session) in (False, None)
    np.testing.assert_array_equal(session.run(None, feeds)[0], stock(model).run(None, feeds)[0])


HOSTILE = {
    "scales too few": ("scales", lambda a: a[:, :1], {}),
    "scales of fewer rows": ("scales", lambda a: a[:-1], {}),
    "flat scales": ("scales", lambda a: a.reshape(-1), {}),
    "wide scales": ("scales", lambda a: a.astype(np.float64), {}),
    "zero points too few": ("zero_points", lambda a: a[:, :1], {}),
    "zero points of fewer rows": ("zero_points", lambda a: a[:-1], {}),
    "zero points of another type": ("zero_points", lambda a: a.astype(np.int8), {}),
    "no rows": ("data", lambda a: a[:0], {}),
    "no columns": ("data", lambda a: a[:, :0], {}),
    "a vector": ("data", lambda a: a.reshape(-1), {}),
    "nothing": ("data", lambda a: a[0, 0], {}),
    "block_size 24": ("data", lambda a: a, {"block_size": 24}),
    "block_size 0": ("data", lambda a: a, {"block_size": 0}),
    "block_size -32": ("data", lambda a: a, {"block_size": -32}),
    "block_size 2^62": ("data", lambda a: a, {"block_size": 2**62}),
    "block_size -2^63": ("data", lambda a: a, {"block_size": -(2**63)}),
    "bits 3": ("data", lambda a: a, {"bits": 3}),
    "bits 8": ("data", lambda a: a, {"bits": 8}),
    "bits 2^40": ("data", lambda a: a, {"bits": 2**40}),
    "axis 7": ("data", lambda a: a, {"gather_axis": 7}),
    "axis -2^63": ("data", lambda a: a, {"quantize_axis": -(2**63)}),
}


@pytest.fixture(scope="module")
def child():
    made = Child()
    yield made
    made.close()


@pytest.mark.parametrize("what", list(HOSTILE))
@pytest.mark.parametrize("kind", ["uint8", "int4"])
def test_hostile(child, what, kind):
    """Left to ONNX Runtime, which finds its own words for it or has an answer."""
    name, spoil, attributes = HOSTILE[what]
    table = Table(kind)
    table.arrays[name] = np.ascontiguousarray(spoil(table.arrays[name]))
    model, feeds = table.model(**attributes), {"indices": INDICES}
    try:
        theirs = child.run(model, feeds, provider=False, ops=False)
    except CrashError:
        pytest.skip("ONNX Runtime itself crashes")
    ours = child.run(model, feeds, provider=True)
    assert isinstance(ours, str) == isinstance(theirs, str), (ours, theirs)
    if not isinstance(ours, str):
        np.testing.assert_array_equal(ours, theirs)
