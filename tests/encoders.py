"""Self-attention as exporters write it, in its variants."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from graphs import Builder, weight

BATCH, SEQUENCE, HEADS, WIDTH = 3, 7, 4, 8
HIDDEN = HEADS * WIDTH
LOWEST = float(np.finfo(np.float32).min)


class Encoder:
    """One attention with a residual, and how its graph is spelled.

    Args:
        mask: "added", "lowest" (added, as newer exports have it), "where", "none", "scores" (added as is), "causal" (a
            triangle and padding), "relative" (a bias by distance, repeated for the batch, and padding), "window"
            (Where lets queries see keys near them alone), "table" (a constant for each head) or "windows" (the same,
            and a mask for each of two windows that images of the batch consist of; the sequence is fixed).
        scale: Where the factor stands: "div", "mul", "query" or "both" (query and key); "sizes" is both, computed of
            the width as torch exports it.
        shapes: "constant", "computed", "as is", with sizes of zero allowed, or "of x", from whose sizes all but the
            heads come, and whose width is not stated.
        key: "once" or "twice" transposed, or as "matrices" whose first axis is batch and heads.
        packed: How heads are taken from one product: "axes" (an axis of three, split), "picked" (the same, by Gather),
            "by head" (its columns are query, key and value of each), "columns" (cut before they are split) or "slices"
            (the same by three nodes, without a bias); "" where there are three products.
        keep_keys: Whether the keys are an output, too.
        other: Whether keys and values are of another tensor.
        rotated: Whether queries and keys are rotated by their positions.
    """

    def __init__(self, mask="added", scale="div", shapes="constant", key="once", keep_keys=False, other=False,
                 packed="", rotated=False) -> None:  # fmt: skip
        self.b = b = Builder(18)
        self.mask, self.shapes = mask, shapes
        length = SEQUENCE if mask == "windows" else "sequence"
        self.x = x = b.input("x", ["batch", length, "width" if shapes == "of x" else HIDDEN])
        if mask == "scores":
            self.m = b.input("bias", ["batch", 1, "sequence", "sequence"])
        elif mask != "none":
            self.m = b.input("attention_mask", ["batch", "sequence"], ir.DataType.INT64)
        memory = b.input("memory", ["batch", "sequence", HIDDEN]) if other else x
        if packed:
            q, k, v = self.packed(x, packed)
        else:
            q, k, v = self.heads("query", x), self.heads("key", memory), self.heads("value", memory)
        if rotated:
            q, k = self.rotated(q), self.rotated(k)
        factor = 1 / math.sqrt(WIDTH)
        if scale == "sizes":
            width = b.op("Slice", b.op("Shape", q), self.whole(-1), self.whole(2**63 - 1))
            root = b.op("Sqrt", b.op("Cast", width, to=int(ir.DataType.FLOAT)))
            root = b.op("Sqrt", b.op("Div", b.constant("unit", np.ones(1, np.float32)), root))
            q, k = b.op("Mul", q, root, name="scale_q"), b.op("Mul", k, root, name="scale_k")
        if scale in ("query", "both"):
            root = factor if scale == "query" else math.sqrt(factor)
            q = b.op("Mul", q, self.number(root), name="scale_q")
            k = b.op("Mul", k, self.number(root), name="scale_k") if scale == "both" else k
        if key == "matrices":
            k = self.turned_as_matrices(b.op("Transpose", k, perm=[0, 2, 1, 3]))
        elif key == "once":
            k = b.op("Transpose", k, perm=[0, 2, 3, 1], name="turn_k")
        else:
            k = b.op("Transpose", b.op("Transpose", k, perm=[0, 2, 1, 3]), perm=[0, 1, 3, 2], name="turn_k")
        q, v = (b.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))
        scores = b.op("MatMul", q, k, name="scores")
        if scale == "div":
            scores = b.op("Div", scores, self.number(math.sqrt(WIDTH)))
        elif scale == "mul":
            scores = b.op("Mul", self.number(factor), scores)
        context = b.op("MatMul", b.op("Softmax", self.masked(scores), axis=-1, name="softmax"), v, name="context")
        y = self.reshape(b.op("Transpose", context, perm=[0, 2, 1, 3]), [HIDDEN])
        y = b.op("Add", b.op("MatMul", y, b.constant("Wo", weight(HIDDEN, HIDDEN, 9)), name="out/MatMul"), x)
        norm = b.constant("gamma", np.ones(HIDDEN, np.float32)), b.constant("beta", np.zeros(HIDDEN, np.float32))
        b.output(b.op("LayerNormalization", y, *norm, axis=-1), ["batch", "sequence", HIDDEN])
        if keep_keys:
            b.output(k, ["batch", HEADS, WIDTH, "sequence"])
        self.model = b.model()

    def number(self, value: float) -> ir.Value:
        return self.b.constant(f"number_{len(self.b.graph.initializers)}", np.array(value, np.float32))

    def whole(self, *values: int) -> ir.Value:
        return self.b.constant(f"whole_{len(self.b.graph.initializers)}", np.array(values, np.int64))

    def heads(self, name: str, x: ir.Value) -> ir.Value:
        seed = len(name)
        y = self.b.op(
            "MatMul", x, self.b.constant(f"{name}.W", weight(HIDDEN, HIDDEN, seed) * 4), name=f"{name}/MatMul"
        )
        bias = self.b.constant(f"{name}.b", weight(1, HIDDEN, seed)[0])
        return self.reshape(self.b.op("Add", bias, y, name=f"{name}/Add"), [HEADS, WIDTH])

    def packed(self, x: ir.Value, way: str) -> list[ir.Value]:
        """Queries, keys and values [batch, sequence, heads, width] of one product."""
        b = self.b
        y = b.op("MatMul", x, b.constant("qkv.W", weight(HIDDEN, 3 * HIDDEN, 5) * 4), name="qkv/MatMul")
        if way != "slices":
            y = b.op("Add", b.constant("qkv.b", weight(1, 3 * HIDDEN, 6)[0]), y)
        y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", "sequence", 3 * HIDDEN])
        thirds = self.whole(HIDDEN, HIDDEN, HIDDEN)
        if way == "columns":
            return [self.reshape(part, [HEADS, WIDTH]) for part in b.op("Split", y, thirds, axis=-1, outputs=3)]
        if way == "slices":
            ends = [(self.whole(at * HIDDEN), self.whole((at + 1) * HIDDEN)) for at in range(3)]
            return [self.reshape(b.op("Slice", y, *each, self.whole(-1)), [HEADS, WIDTH]) for each in ends]
        if way == "by head":
            y = self.reshape(y, [HEADS, 3 * WIDTH])
            ends = [(self.whole(at * WIDTH), self.whole((at + 1) * WIDTH)) for at in range(3)]
            return [b.op("Slice", y, *each, self.whole(-1)) for each in ends]
        y = b.op("Transpose", self.reshape(y, [3, HEADS, WIDTH]), perm=[2, 0, 1, 3, 4])
        if way == "picked":
            return [b.op("Gather", y, b.constant(f"at{at}", np.array(at, np.int64)), axis=0) for at in range(3)]
        parts = b.op("Split", y, self.whole(1, 1, 1), axis=0, outputs=3)
        return [b.op("Squeeze", part, self.whole(0)) for part in parts]

    def turned_as_matrices(self, k: ir.Value) -> ir.Value:
        b = self.b
        sizes = b.op("Shape", k)
        cuts = ((-(2**63), -2), (-2, -1), (-1, 2**63 - 1))
        lead, rows, columns = (b.op("Slice", sizes, self.whole(begin), self.whole(end)) for begin, end in cuts)
        flat = b.op("Reshape", k, b.op("Concat", self.whole(-1), rows, columns, axis=0))
        turned = b.op("Transpose", flat, perm=[0, 2, 1])
        return b.op("Reshape", turned, b.op("Concat", lead, columns, rows, axis=0), name="turn_k")

    def reshape(self, y: ir.Value, tail: list[int]) -> ir.Value:
        b = self.b
        if self.shapes == "constant":
            return b.op("Reshape", y, self.whole(0, 0, *tail))
        sizes = b.op("Shape", self.x if self.shapes == "of x" else y)
        at = [b.constant(f"axis{axis}_{len(b.graph)}", np.array(axis, np.int64)) for axis in (0, 1)]
        first = [b.op("Unsqueeze", b.op("Gather", sizes, axis), self.whole(0)) for axis in at]
        last = self.whole(tail[0] if self.shapes == "as is" else -1)
        if self.shapes == "of x" and len(tail) == 1:
            last = b.op("Slice", sizes, self.whole(2), self.whole(3))
        shape = b.op("Concat", *first, last, *map(self.whole, tail[1:]), axis=0)
        return b.op("Reshape", y, shape, **({"allowzero": 1} if self.shapes == "as is" else {}))

    def masked(self, scores: ir.Value) -> ir.Value:
        b = self.b
        if self.mask == "none":
            return scores
        if self.mask == "scores":
            return b.op("Add", scores, self.m)
        if self.mask == "where":
            padding = b.op("Equal", self.m, self.whole(0))
            padding.type, padding.shape = ir.TensorType(ir.DataType.BOOL), self.m.shape
            padding = b.op("Unsqueeze", padding, self.whole(1, 2))
            return b.op("Where", b.op("Expand", padding, b.op("Shape", scores)), self.number(-np.inf), scores)
        if self.mask == "table":
            return self.masked_by_table(scores)
        if self.mask == "windows":
            masks = np.where(np.random.default_rng(4).random((1, 2, 1, SEQUENCE, SEQUENCE)) < 0.3, -100, 0)
            apart = b.op("Reshape", scores, self.whole(-1, 2, HEADS, SEQUENCE, SEQUENCE))
            whole = b.op("Add", apart, b.constant("masks", masks.astype(np.float32)))
            return self.masked_by_table(b.op("Reshape", whole, self.whole(-1, HEADS, SEQUENCE, SEQUENCE)))
        if self.mask == "window":
            near = b.op("LessOrEqual", b.op("Abs", self.distances()), b.constant("radius", np.array(2, np.int64)))
            near = b.op("Unsqueeze", near, self.whole(0, 1))
            return b.op("Where", near, scores, self.number(-np.inf))
        wide = b.op("Cast", b.op("Unsqueeze", self.m, self.whole(1, 2)), to=int(ir.DataType.FLOAT))
        if self.mask == "causal":
            full = b.op(
                "Add", wide, b.constant("triangle", np.triu(np.full((1, 1, SEQUENCE, SEQUENCE), -1e4, np.float32), 1))
            )
            return b.op("Add", scores, full)
        if self.mask == "relative":
            scores = b.op("Add", scores, self.relative())
        out = b.op("Sub", self.number(1.0), wide)
        if self.mask in ("added", "relative"):
            return b.op("Add", b.op("Mul", out, self.number(-10000.0)), scores)
        out = b.op("Expand", out, self.whole(1, 1, SEQUENCE, 1))
        lowest = b.op("Where", b.op("Cast", out, to=int(ir.DataType.BOOL)), self.number(LOWEST), out)
        return b.op("Add", scores, lowest)

    def masked_by_table(self, scores: ir.Value) -> ir.Value:
        table = np.random.default_rng(3).standard_normal((1, HEADS, SEQUENCE, SEQUENCE)).astype(np.float32) * 2
        return self.b.op("Add", self.b.constant("table", table), scores)

    def distances(self) -> ir.Value:
        """int64 [sequence, sequence]: how far each key is behind each query."""
        b = self.b
        length = b.op("Squeeze", b.op("Slice", b.op("Shape", self.m), self.whole(1), self.whole(2)), self.whole(0))
        places = b.op(
            "Range", b.constant("zero", np.array(0, np.int64)), length, b.constant("one", np.array(1, np.int64))
        )
        return b.op("Sub", b.op("Unsqueeze", places, self.whole(0)), b.op("Unsqueeze", places, self.whole(1)))

    def relative(self) -> ir.Value:
        """float32 [batch, heads, sequence, sequence]: numbers of a table, by distance."""
        b = self.b
        table = np.random.default_rng(3).standard_normal((32, HEADS)).astype(np.float32) * 2
        at = b.op("Add", self.distances(), b.constant("middle", np.array(16, np.int64)))
        bias = b.op("Transpose", b.op("Gather", b.constant("table", table), at), perm=[2, 0, 1])
        batch = b.op("Slice", b.op("Shape", self.m), self.whole(0), self.whole(1))
        return b.op(
            "Expand", b.op("Unsqueeze", bias, self.whole(0)), b.op("Concat", batch, self.whole(1, 1, 1), axis=0)
        )

    def rotated(self, heads: ir.Value) -> ir.Value:
        """Heads [batch, sequence, heads, width], rotated by halves (Su et al., 2021, arXiv:2104.09864)."""
        b, half = self.b, WIDTH // 2
        if not hasattr(self, "angles"):
            length = b.op("Squeeze", b.op("Slice", b.op("Shape", self.x), self.whole(1), self.whole(2)), self.whole(0))
            start, step = (b.constant(f"step{n}", np.array(n, np.int64)) for n in (0, 1))
            places = b.op("Cast", b.op("Range", start, length, step), to=int(ir.DataType.FLOAT))
            speeds = b.constant("speeds", (10.0 ** -np.arange(half)).astype(np.float32))
            angle = b.op("Mul", b.op("Unsqueeze", places, self.whole(1)), speeds)
            angle = b.op("Unsqueeze", b.op("Concat", angle, angle, axis=-1), self.whole(0, 2))
            self.angles = b.op("Cos", angle), b.op("Sin", angle)
        cos, sin = self.angles
        first = b.op("Slice", heads, self.whole(0), self.whole(half), self.whole(3))
        second = b.op("Slice", heads, self.whole(half), self.whole(WIDTH), self.whole(3))
        turned = b.op("Concat", b.op("Neg", second), first, axis=-1)
        return b.op("Add", b.op("Mul", heads, cos), b.op("Mul", turned, sin))


def feeds(names: list[str], seed: int = 0, sequence: int = SEQUENCE) -> dict[str, np.ndarray]:
    """Batch entries of different lengths, the last one all padding."""
    rng = np.random.default_rng(seed)
    lengths = np.array([[sequence], [max(1, sequence // 2)], [0]])
    made = {
        "x": rng.standard_normal((BATCH, sequence, HIDDEN)).astype(np.float32),
        "memory": rng.standard_normal((BATCH, sequence, HIDDEN)).astype(np.float32),
        "attention_mask": (np.arange(sequence) < lengths).astype(np.int64),
        "bias": rng.standard_normal((BATCH, 1, sequence, sequence)).astype(np.float32),
    }
    return {name: made[name] for name in names}
