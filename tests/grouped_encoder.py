"""An encoder whose heads are grouped, normalized and rotated, as Gemma's: norms ahead of their turn or behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graphs import Builder, weight

HEADS, SIZE, HIDDEN = 4, 32, 64


class GroupedEncoder:
    """One layer: x + norm(attention(norm(x))), then x + norm(a gated perceptron of norm(x)).

    Args:
        kv_heads: Heads of keys and values.
        heads_first: Whether norms of heads read [batch, heads, sequence, size], as Hugging Face's code has it.
    """

    def __init__(self, kv_heads: int = 1, heads_first: bool = False) -> None:
        self.b = b = Builder(18)
        self.kv_heads, self.heads_first = kv_heads, heads_first
        x = b.input("x", ["batch", "sequence", HIDDEN])
        mask = b.input("mask", ["batch", "sequence"], ir.DataType.INT64)
        seen = b.op("Unsqueeze", b.op("Cast", mask, to=int(ir.DataType.BOOL)), self.ints("axes", 1, 2))
        self.added = b.op("Where", seen, self.number(0.0), self.number(-1e9))
        place = b.op("Range", self.whole(0), b.op("Gather", b.op("Shape", x), self.whole(1)), self.whole(1))
        rates = b.constant("rates", (100.0 ** -(np.arange(SIZE // 2) / (SIZE // 2))).astype(np.float32))
        column = b.op("Unsqueeze", b.op("Cast", place, to=int(ir.DataType.FLOAT)), self.ints("one", 1))
        angles = b.op("Mul", column, rates)
        self.cosine, self.sine = b.op("Cos", angles), b.op("Sin", angles)
        x = b.op("Add", x, self.norm(self.attention(self.norm(x, "first")), "second"))
        y = self.norm(x, "third")
        gate = b.op("MatMul", y, self.weight("gate", HIDDEN, 96), name="gate")
        up = b.op("MatMul", y, self.weight("up", HIDDEN, 96), name="up")
        product = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
        down = b.op("MatMul", product, self.weight("down", 96, HIDDEN), name="down")
        b.output(b.op("Add", x, self.norm(down, "fourth")), ["batch", "sequence", HIDDEN])
        self.model = b.model()

    def weight(self, name, K, N):
        return self.b.constant(f"W_{name}", weight(K, N, len(name)))

    def number(self, number):
        return self.b.constant(f"number_{len(self.b.graph.initializers)}", np.array(number, np.float32))

    def whole(self, number):
        return self.b.constant(f"whole_{len(self.b.graph.initializers)}", np.array(number))

    def ints(self, name, *numbers):
        return self.b.constant(name, np.array(numbers))

    def norm(self, x, name, width=HIDDEN):
        b = self.b
        mean = b.op("ReduceMean", b.op("Mul", x, x), self.ints(f"last_{name}", -1), keepdims=1)
        root = b.op("Sqrt", b.op("Add", mean, self.number(1e-6)))
        scale = np.random.default_rng(len(name)).uniform(0.5, 1.5, width).astype(np.float32)
        return b.op("Mul", b.op("Div", x, root), b.constant(f"scale_{name}", scale), name=f"norm_{name}")

    def attention(self, x):
        b = self.b
        query = self.turned(self.heads(x, "query", HEADS, norm=True))
        key = self.shared(self.turned(self.heads(x, "key", self.kv_heads, norm=True)), "key")
        value = self.shared(self.heads(x, "value", self.kv_heads), "value")
        scores = b.op("MatMul", query, b.op("Transpose", key, perm=[0, 1, 3, 2]))
        scaled = b.op("Add", b.op("Mul", scores, self.number(SIZE**-0.5)), self.added)
        context = b.op("MatMul", b.op("Softmax", scaled, axis=-1, name="softmax"), value)
        merged = b.op("Reshape", b.op("Transpose", context, perm=[0, 2, 1, 3]), self.ints("merged", 0, 0, HEADS * SIZE))
        return b.op("MatMul", merged, self.weight("out", HEADS * SIZE, HIDDEN), name="out")

    def heads(self, x, name, heads, norm=False):
        b = self.b
        made = b.op("MatMul", x, self.weight(name, HIDDEN, heads * SIZE), name=name)
        made = b.op("Reshape", made, self.ints(f"apart_{name}", 0, 0, heads, SIZE))
        if norm and not self.heads_first:
            made = self.norm(made, name, SIZE)
        made = b.op("Transpose", made, perm=[0, 2, 1, 3])
        return self.norm(made, name, SIZE) if norm and self.heads_first else made

    def turned(self, x):
        b = self.b
        first, second = b.op("Split", x, outputs=2, axis=-1, num_outputs=2)
        return b.op(
            "Concat",
            b.op("Sub", b.op("Mul", first, self.cosine), b.op("Mul", second, self.sine)),
            b.op("Add", b.op("Mul", second, self.cosine), b.op("Mul", first, self.sine)),
            axis=-1,
        )

    def shared(self, x, name):
        b = self.b
        if self.kv_heads in (1, HEADS):
            return x
        group = self.ints(f"group_{name}", 1, 1, HEADS // self.kv_heads, 1, 1)
        repeated = b.op("Expand", b.op("Unsqueeze", x, self.ints(f"second_{name}", 2)), group)
        sizes = b.op("Shape", x)
        ends = [
            b.op("Slice", sizes, self.ints(f"{name}_{i}", i), self.ints(f"{name}_{i}_end", e))
            for i, e in ((0, 1), (2, 4))
        ]
        return b.op("Reshape", repeated, b.op("Concat", ends[0], self.ints(f"heads_{name}", HEADS), ends[1], axis=0))


def feeds(batch: int = 3, sequence: int = 7) -> dict[str, np.ndarray]:
    """Rows of which the second is padded on the right and the third on the left."""
    x = np.random.default_rng(0).standard_normal((batch, sequence, HIDDEN)).astype(np.float32)
    mask = np.ones((batch, sequence), np.int64)
    mask[1:2, sequence // 2 :] = 0
    mask[2:3, :2] = 0
    return {"x": x, "mask": mask}
