"""Decoders with rotary embeddings and a past, in the ways that exporters write them."""

from __future__ import annotations

import dataclasses

import graphs
import numpy as np
import onnx_ir as ir
from decoder_form import Form

VOCABULARY, TABLE = 40, 64
I64, F32, BOOL = ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL
LOWEST = float(np.finfo(np.float32).min)


class Decoder(graphs.Builder):
    """A model of one form, whose weights are random."""

    def __init__(self, form: Form | None = None, **changes: object) -> None:
        super().__init__(18)
        self.form = f = dataclasses.replace(form or Form(), **changes)
        self.random = np.random.default_rng(0)
        self.ids = self.input("input_ids", ["batch", "sequence"], I64)
        if f.cached:
            self.seen = self.input("attention_mask", ["batch", "past + sequence"], I64)
        if f.rotary != "range":
            self.positions = self.input("position_ids", ["batch", "sequence"], I64)
        self.past = [
            [self.input(f"past.{layer}.{part}", ["batch", f.shared, "past", f.width]) for part in ("key", "value")]
            for layer in range(f.layers if f.cached else 0)
        ]
        table = self.matrix(VOCABULARY, f.hidden, 1.0)
        x = self.op("Gather", table, self.ids)
        x.type, x.shape = ir.TensorType(F32), ir.Shape(["batch", "sequence", f.hidden])
        self.mask, self.angles = self.make_mask(), self.make_angles(x)
        presents = []
        for layer in range(f.layers):
            x = self.layer(x, layer, presents)
        x = self.norm(x)
        head = self.op("Transpose", table, perm=[1, 0]) if f.tied else self.matrix(f.hidden, VOCABULARY)
        logits = self.op("MatMul", x, head, name="lm_head/MatMul")
        self.output(logits, ["batch", "sequence", VOCABULARY])
        for name, value in presents:
            self.output(value, ["batch", f.shared, "past + sequence", f.width])
            value.name = name
        if f.reads:
            self.output(self.op("Relu", presents[0][1]), ["batch", f.shared, "past + sequence", f.width])
        self.made = self.model()

    def whole(self, *numbers: int) -> ir.Value:
        return self.constant(f"whole_{len(self.graph.initializers)}", np.array(numbers, np.int64))

    def one(self, number: float, dtype=np.float32) -> ir.Value:
        return self.constant(f"one_{len(self.graph.initializers)}", np.array(number, dtype))

    def once(self, name: str, array: np.ndarray) -> ir.Value:
        """A constant that layers share."""
        known = self.graph.initializers
        return known[name] if name in known else self.constant(name, array)

    def matrix(self, rows: int, columns: int, scale: float | None = None) -> ir.Value:
        size = 2 * rows**-0.5 if scale is None else scale
        array = (self.random.standard_normal((rows, columns)) * size).astype(np.float32)
        return self.constant(f"matrix_{len(self.graph.initializers)}", array)

    def vector(self, size: int, mean: float = 0.0) -> ir.Value:
        array = (mean + 0.1 * self.random.standard_normal(size)).astype(np.float32)
        return self.constant(f"vector_{len(self.graph.initializers)}", array)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        return self.op("Gather", self.op("Shape", value), self.one(axis, np.int64), axis=0)

    def make_mask(self) -> ir.Value | None:
        f = self.form
        if f.mask == "none" or not f.cached:
            return None
        before, new = self.size(self.past[0][0], 2), self.size(self.ids, 1)
        total, zero, step = self.op("Add", before, new), self.one(0, np.int64), self.one(1, np.int64)
        keys = self.op("Range", zero, total, step)
        queries = self.op("Unsqueeze", self.op("Range", before, total, step), self.whole(1))
        kept = self.op(
            "LessOrEqual", keys, self.op("Add", queries, self.one(2, np.int64)) if f.mask == "future" else queries
        )
        if f.mask == "window":
            near = self.op("Greater", keys, self.op("Sub", queries, self.one(3, np.int64)))
            kept = self.op("And", kept, near)
        if f.mask == "types":
            image = self.op("Equal", self.input("token_type_ids", ["batch", "sequence"], I64), self.one(1, np.int64))
            ahead = self.op("Unsqueeze", before, self.whole(0))
            pads = self.op("Concat", self.whole(0), ahead, self.whole(0, 0), axis=0)
            wide = self.op("Pad", self.op("Cast", image, to=int(F32)), pads)
            rows, columns = self.op("Unsqueeze", image, self.whole(2)), self.op("Unsqueeze", wide, self.whole(1))
            both = (self.op("Cast", each, to=int(BOOL)) for each in (rows, columns))
            kept = self.op("Or", self.op("And", *both), kept)
        kept.type = ir.TensorType(BOOL)
        there = self.op("Cast", self.op("Unsqueeze", self.seen, self.whole(1, 2)), to=int(BOOL))
        axes = self.whole(1) if f.mask == "types" else self.whole(0, 1)
        mask = self.op("And", there, self.op("Unsqueeze", kept, axes))
        mask.type = ir.TensorType(BOOL)
        if f.mask in ("added", "table"):
            mask = self.op("Where", mask, self.one(0.0), self.one(LOWEST))
            mask.type = ir.TensorType(F32)
        return mask

    def make_distance(self) -> ir.Value:
        """What scores are added by head: [heads, 1, keys], [batch, heads, 1, keys] or flat [batch * heads, 1, keys]."""
        f = self.form
        slopes = (0.5 ** (1 + np.arange(f.heads))).astype(np.float32)
        if f.distance == "table":
            places = np.arange(1 - TABLE, 1, dtype=np.float32)
            table = self.once("distances", slopes[:, None, None] * places)
            begin = self.op("Sub", self.one(TABLE, np.int64), self.size(self.kept[0], 2))
            return self.op("Slice", table, self.op("Unsqueeze", begin, self.whole(0)), self.whole(2**62), self.whole(2))
        counted = self.op("Mul", self.op("CumSum", self.seen, self.one(-1, np.int64)), self.seen)
        places = self.op("Cast", self.op("Unsqueeze", counted, self.whole(1)), to=int(F32))
        costs = self.op("Mul", self.once("slopes", slopes[:, None]), places)
        if not f.flat:
            return self.op("Unsqueeze", costs, self.whole(2))
        both = self.op("Mul", self.size(self.seen, 0), self.one(f.heads, np.int64))
        ends = (self.op("Unsqueeze", each, self.whole(0)) for each in (both, self.size(self.seen, 1)))
        first, last = ends
        return self.op("Reshape", costs, self.op("Concat", first, self.whole(1), last, axis=0))

    def make_angles(self, x: ir.Value) -> tuple[ir.Value, ir.Value] | None:
        f = self.form
        if f.rotary == "none":
            return None
        rotated = f.width // 2 if f.rotary == "part" else f.width
        frequencies = 100.0 ** -(np.arange(rotated // 2) / (rotated // 2)).astype(np.float32)
        if f.rotary == "table":
            angle = np.arange(TABLE)[:, None] * frequencies
            doubled = np.concatenate([angle, angle], -1).astype(np.float32)
            tables = [self.constant(name, make(doubled)) for name, make in (("cos", np.cos), ("sin", np.sin))]
            rows = [self.op("Gather", table, self.positions) for table in tables]
            return tuple(self.op("Unsqueeze", row, self.whole(1)) for row in rows)
        if f.rotary == "elements":
            return self.elements(np.arange(TABLE, dtype=np.float32)[:, None] * frequencies)
        if f.rotary == "range":
            before = self.size(self.past[0][0], 2)
            end = self.op("Add", before, self.size(x, 1))
            self.positions = self.op("Unsqueeze", self.op("Range", before, end, self.one(1, np.int64)), self.whole(0))
        places = self.op("Cast", self.op("Unsqueeze", self.positions, self.whole(1, 3)), to=int(F32))
        angle = self.op("Mul", places, self.constant("frequencies", frequencies))
        if f.rotary == "picked":
            twice = self.constant("twice", np.repeat(np.arange(rotated // 2), 2)[:, None])
            turned = (self.op("Transpose", self.op(each, angle), perm=[3, 0, 1, 2]) for each in ("Cos", "Sin"))
            picked = [self.op("GatherND", each, twice) for each in turned]
            return tuple(self.op("Transpose", each, perm=[1, 2, 3, 0]) for each in picked)
        if f.rotary == "pairs":
            angle = self.paired(angle, rotated)
        elif f.rotary != "once":
            angle = self.op("Concat", angle, angle, axis=-1)
        return self.op("Cos", angle), self.op("Sin", angle)

    def paired(self, angle: ir.Value, rotated: int) -> ir.Value:
        """Each of the last axis of [batch, 1, sequence, rotated / 2] twice."""
        angle = self.op("Unsqueeze", angle, self.whole(4))
        return self.op("Reshape", self.op("Concat", angle, angle, axis=-1), self.whole(0, 0, -1, rotated))

    def elements(self, angle: np.ndarray) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of one table [1, positions, rotated], whose elements are gathered by position."""
        rotated = 2 * angle.shape[1]
        table = self.constant("table", np.concatenate([np.cos(angle), np.sin(angle)], -1)[None])
        batch = self.op("Unsqueeze", self.size(self.positions, 0), self.whole(0))
        table = self.op("Expand", table, self.op("Concat", batch, self.whole(1, 1), axis=0))
        places = self.op("Expand", self.op("Unsqueeze", self.positions, self.whole(2)), self.whole(1, 1, rotated))
        rows = self.op("Unsqueeze", self.op("GatherElements", table, places, axis=1), self.whole(1))
        halves = self.op("Split", rows, self.whole(rotated // 2, rotated // 2), axis=3, outputs=2)
        return tuple(self.paired(half, rotated) for half in halves)

    def rotate(self, x: ir.Value) -> ir.Value:
        f = self.form
        if self.angles is None:
            return x
        cos, sin = self.angles
        half = f.width // 2

        def cut(value: ir.Value, begin: int, end: int, step: int = 1) -> ir.Value:
            return self.op("Slice", value, self.whole(begin), self.whole(end), self.whole(3), self.whole(step))

        if f.rotary == "once":
            a, b = cut(x, 0, half), cut(x, half, f.width)
            first = self.op("Sub", self.op("Mul", a, cos), self.op("Mul", b, sin))
            return self.op("Concat", first, self.op("Add", self.op("Mul", b, cos), self.op("Mul", a, sin)), axis=-1)
        if f.rotary in ("pairs", "picked", "elements"):
            a, b = cut(x, 0, f.width, 2), self.op("Neg", cut(x, 1, f.width, 2))
            pairs = self.op("Concat", *(self.op("Unsqueeze", each, self.whole(4)) for each in (b, a)), axis=-1)
            turned = self.op("Reshape", pairs, self.op("Shape", x))
            return self.op("Add", self.op("Mul", x, cos), self.op("Mul", turned, sin))
        rest = None
        if f.rotary == "part":
            x, rest, half = cut(x, 0, half), cut(x, half, f.width), half // 2
        turned = self.op("Concat", self.op("Neg", cut(x, half, 2**62)), cut(x, 0, half), axis=-1)
        y = self.op("Add", self.op("Mul", x, cos), self.op("Mul", turned, sin))
        return y if rest is None else self.op("Concat", y, rest, axis=-1)

    def norm(self, x: ir.Value, size: int | None = None) -> ir.Value:
        f, size = self.form, size or self.form.hidden
        scale = self.vector(size, 1.0)
        if f.norms == "layer":
            return self.op("LayerNormalization", x, scale, self.vector(size), axis=-1)
        power = self.op("Mul", x, x) if f.norms == "reciprocal" else self.op("Pow", x, self.one(2.0))
        mean = self.op("ReduceMean", power, self.whole(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.one(1e-6)))
        if f.norms == "reciprocal":
            return self.op("Mul", scale, self.op("Mul", x, self.op("Div", self.one(1.0), root)))
        return self.op("Mul", self.op("Div", x, root), scale)

    def product(self, x: ir.Value, rows: int, columns: int, name: str) -> ir.Value:
        y = self.op("MatMul", x, self.matrix(rows, columns), name=f"{name}/MatMul")
        return self.op("Add", y, self.vector(columns), name=f"{name}/Add") if self.form.bias else y

    def heads(self, x: ir.Value, layer: int) -> list[ir.Value]:
        """Queries, keys and values [batch, heads, sequence, width]."""
        f = self.form
        counts = (f.heads, f.shared, f.shared)
        lead = [self.op("Unsqueeze", self.size(x, axis), self.whole(0)) for axis in (0, 1)]

        def split(y: ir.Value, *last: int) -> ir.Value:
            return self.op("Reshape", y, self.op("Concat", *lead, *(self.whole(size) for size in last), axis=0))

        if f.products == "by head":
            y = self.product(x, f.hidden, 3 * f.heads * f.width, f"{layer}/qkv")
            y = self.op("Transpose", split(y, -1, 3 * f.width), perm=[0, 2, 1, 3])
            cuts = [(self.whole(at * f.width), self.whole((at + 1) * f.width)) for at in range(3)]
            return [self.op("Slice", y, *cut, self.whole(-1)) for cut in cuts]
        if f.products == "groups":
            half = f.heads // 2
            y = split(self.product(x, f.hidden, 3 * f.heads * f.width, f"{layer}/qkv"), 2, -1)
            query, value, key = self.op("Split", y, self.whole(*[half * f.width] * 3), axis=3, outputs=3)
            parts = [split(self.op("Reshape", part, self.whole(0, 0, 2, half, f.width)), f.heads, f.width)
                     for part in (query, key, value)]  # fmt: skip
            return [self.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts]
        if f.products == "unsqueezed":
            sizes = [count * f.width for count in counts]
            y = self.op("Unsqueeze", self.product(x, f.hidden, sum(sizes), f"{layer}/qkv"), self.whole(1))
            query, key, value = self.op("Split", y, self.whole(*sizes), axis=3, outputs=3)
            return [self.op("Transpose", split(query, -1, f.width), perm=[0, 2, 1, 3]), key, value]
        if f.products == "packed":
            sizes = [count * f.width for count in counts]
            y = self.product(x, f.hidden, sum(sizes), f"{layer}/qkv")
            parts = self.op("Split", y, self.whole(*sizes), axis=2, outputs=3)
            for part, size in zip(parts, sizes, strict=True):
                part.shape = ir.Shape(["batch", "sequence", size])
        else:
            names = ("query", "key", "value")
            parts = [
                self.product(x, f.hidden, count * f.width, f"{layer}/{name}")
                for count, name in zip(counts, names, strict=True)
            ]
        made = []
        for at, part in enumerate(parts):
            y = split(part, -1, f.width)
            if at < 2 and f.head_norms == "before":
                y = self.norm(y, f.width)
            y = self.op("Transpose", y, perm=[0, 2, 1, 3])
            made.append(self.norm(y, f.width) if at < 2 and f.head_norms == "after" else y)
        return made

    def repeated(self, x: ir.Value) -> ir.Value:
        f = self.form
        times = f.heads // f.shared
        if times == 1:
            return x
        sizes = [self.op("Unsqueeze", self.size(x, axis), self.whole(0)) for axis in (0, 2)]
        wide = self.op("Unsqueeze", x, self.whole(2))
        if f.repeat == "tile":
            wide = self.op("Tile", wide, self.whole(1, 1, times, 1, 1))
        else:
            shape = self.op("Concat", sizes[0], self.whole(f.shared, times), sizes[1], self.whole(f.width), axis=0)
            wide = self.op("Expand", wide, shape)
        shape = self.op("Concat", sizes[0], self.whole(f.heads), sizes[1], self.whole(f.width), axis=0)
        return self.op("Reshape", wide, shape)

    def masked(self, scores: ir.Value, query: ir.Value) -> ir.Value:
        f = self.form
        if self.mask is None:
            return scores
        key = self.kept[0]
        end = self.op("Unsqueeze", self.size(key, 2), self.whole(0))
        if f.mask == "table":
            near = np.tri(TABLE, dtype=bool) & ~np.tri(TABLE, k=-3, dtype=bool)
            table = self.once("near", near[None, None])
            begin = self.op("Sub", end, self.op("Unsqueeze", self.size(query, 2), self.whole(0)))
            rows = self.op("Slice", table, begin, end, self.whole(2), self.whole(1))
            seen = self.op("Slice", rows, self.whole(0), end, self.whole(3), self.whole(1))
            scores = self.op("Where", seen, scores, self.one(LOWEST))
        cut = self.op("Slice", self.mask, self.whole(0), end, self.whole(3), self.whole(1))
        cut.type = self.mask.type
        if f.mask == "chosen":
            return self.op("Where", cut, scores, self.one(LOWEST))
        added = cut if f.mask in ("added", "table") else self.op("Where", cut, self.one(0.0), self.one(-np.inf))
        return self.op("Add", scores, added)

    def scaled(self, query: ir.Value, key: ir.Value) -> ir.Value:
        f = self.form
        root = self.one(f.width**-0.25)
        if f.scale == "sizes":
            width = self.op("Cast", self.op("Slice", self.op("Shape", query), self.whole(-1), self.whole(2**62)), to=1)
            root = self.op("Sqrt", self.op("Div", self.one(1.0), self.op("Sqrt", width)))
        if f.scale in ("both", "sizes"):
            query, key = self.op("Mul", query, root), self.op("Mul", key, root)
        scores = self.op("MatMul", query, key)
        return self.op("Mul", scores, self.one(f.width**-0.5)) if f.scale == "scores" else scores

    def attention(self, x: ir.Value, layer: int, presents: list) -> ir.Value:
        f = self.form
        query, key, value = self.heads(x, layer)
        query, key = self.rotate(query), self.rotate(key)
        kept = [key, value]
        if f.cached:
            pairs = zip(self.past[layer], kept, strict=True)
            kept = [self.op("Concat", before, new, axis=-2) for before, new in pairs]
            self.kept = kept
            presents += [(f"present.{layer}.{part}", each) for part, each in zip(("key", "value"), kept, strict=True)]
        key, value = (self.repeated(each) for each in kept)
        whole, turn = query, [0, 1, 3, 2]
        if f.flat:
            sizes = [self.op("Unsqueeze", self.size(x, axis), self.whole(0)) for axis in (0, 1)]
            both = self.op("Mul", sizes[0], self.whole(f.heads))
            merged = self.op("Concat", both, self.whole(-1, f.width), axis=0)
            query, key, value = (self.op("Reshape", each, merged) for each in (query, key, value))
            turn = [0, 2, 1]
        scores = self.scaled(query, self.op("Transpose", key, perm=turn))
        if f.cap:
            scores = self.op("Mul", self.op("Tanh", self.op("Div", scores, self.one(f.cap))), self.one(f.cap))
        if f.distance:
            scores = self.op("Add", scores, self.make_distance())
        if f.flat:
            split = self.op("Concat", sizes[0], self.whole(f.heads), sizes[1], self.whole(-1), axis=0)
            scores = self.op("Reshape", scores, split, name=f"{layer}/split")
        scores = self.masked(scores, whole)
        if f.scale == "masked":
            scores = self.op("Div", scores, self.one(f.width**0.5))
        weights = self.op("Softmax", scores, axis=-1, name=f"{layer}/softmax")
        weights.type, weights.shape = ir.TensorType(F32), ir.Shape([None] * 4)
        if f.mask == "where":
            weights = self.op("Where", self.op("IsNaN", weights), self.one(0.0), weights)
        if f.flat:
            weights = self.op("Reshape", weights, self.op("Concat", both, sizes[1], self.whole(-1), axis=0))
        y = self.op("MatMul", weights, value)
        if f.flat:
            split = self.op("Concat", sizes[0], self.whole(f.heads), sizes[1], self.whole(f.width), axis=0)
            y = self.op("Reshape", y, split)
        y = self.op("Transpose", y, perm=[0, 2, 1, 3])
        y = self.op("Reshape", y, self.whole(0, 0, f.heads * f.width), name=f"{layer}/merge")
        return self.product(y, f.heads * f.width, f.hidden, f"{layer}/out")

    def layer(self, x: ir.Value, layer: int, presents: list) -> ir.Value:
        f = self.form
        x = self.op("Add", x, self.attention(self.norm(x), layer, presents))
        y = self.norm(x)
        gate, up = (self.product(y, f.hidden, 64, f"{layer}/{name}") for name in ("gate", "up"))
        gated = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        return self.op("Add", x, self.product(gated, 64, f.hidden, f"{layer}/down"))


def feeds(model: ir.Model, batch: int, sequence: int, past: int, padding: list[int], seed: int = 0) -> dict:
    """Inputs of a decoder whose rows are padded on the left by so many tokens."""
    random = np.random.default_rng(seed)
    seen = (np.arange(past + sequence) >= np.array(padding)[:, None]).astype(np.int64)
    made = {
        "input_ids": random.integers(0, VOCABULARY, (batch, sequence)),
        "attention_mask": seen,
        "position_ids": np.maximum(seen.cumsum(1) - 1, 0)[:, past:],
    }
    names = [value.name for value in model.graph.inputs]
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) == 4:
            made[value.name] = random.standard_normal((batch, value.shape[1], past, value.shape[3])).astype(np.float32)
    return {name: made[name] for name in names}


def renamed(model: ir.Model, seed: int = 0) -> ir.Model:
    """The model, all of whose nodes and inner values have names of chance."""
    random = np.random.default_rng(seed)
    values = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    for at, node in zip(random.permutation(len(model.graph)), model.graph, strict=True):
        node.name = f"n{at}"
    for at, value in zip(random.permutation(len(values)), values, strict=True):
        value.name = f"v{at}"
    constants = list(model.graph.initializers.values())
    for at, value in zip(random.permutation(len(constants)), constants, strict=True):
        value.name = f"c{at}"
    return model
