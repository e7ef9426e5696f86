"""Vision transformers (Dosovitskiy et al., 2021, arXiv:2010.11929) of random weights, as torch exports them."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from encoder_layers import LayerModel
from encoders import HEADS, HIDDEN, WIDTH
from graphs import Builder, weight

IMAGE, PATCH, CLASSES = 24, 4, 10
PATCHES = (IMAGE // PATCH) ** 2
TOKENS = PATCHES + 1


@dataclasses.dataclass
class VisionModel(LayerModel):
    """Patches by a convolution, a class token ahead of them, positions, layers with norms ahead, and a norm.

    Attributes:
        pooled: What the classifier reads: the "class" token, the "mean" of the patches, or "tokens", where there is
            none and all tokens are the output.
        sizes: Whether images may be of any "open" size or all are "known"; the batch is open.
        layer_scale: Whether what is added to the residual is multiplied by a vector before, as in CaiT and DINOv2.
        packed: Whether queries, keys and values are of one product, as in timm.
    """

    norm_first: bool = True
    mask: bool = False
    pooled: str = "class"
    sizes: str = "known"
    layer_scale: bool = False
    packed: bool = False

    def model(self) -> ir.Model:
        """The graph: pixel_values [batch, 3, IMAGE, IMAGE] to logits [batch, CLASSES], or to all tokens."""
        self.b, self.scope, self.m = (b := Builder(self.opset)), "", None
        size = IMAGE if self.sizes == "known" else "size"
        y = self._embedded(b.input("pixel_values", ["batch", 3, size, size]))
        for layer in range(self.layers):
            self.scope = f"layer.{layer}/" if layer else ""
            y = self._layer(y, y)[2]
        self.scope = "last/"
        y = self._norm("norm", y)
        if self.pooled == "tokens":
            b.output(y, ["batch", TOKENS if self.sizes == "known" else "tokens", HIDDEN])
            return b.model()
        if self.pooled == "class":
            y = b.op("Gather", y, self._constant("first", np.array(0)), axis=1)
        else:
            begin, end, axis = (
                self._constant(name, np.array([at])) for name, at in (("begin", 1), ("end", 2**63 - 1), ("axis", 1))
            )
            y = b.op("ReduceMean", b.op("Slice", y, begin, end, axis), axis, keepdims=0)
        head, bias = weight(HIDDEN, CLASSES, 3), weight(1, CLASSES, 4)[0]
        b.output(
            b.op("Gemm", y, self._constant("head.W", head.T), self._constant("head.b", bias), transB=1, name="head"),
            ["batch", CLASSES],
        )
        return b.model()

    def images(self, count: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
        """Random ones."""
        rng = np.random.default_rng(seed)
        return {"pixel_values": rng.standard_normal((count, 3, IMAGE, IMAGE)).astype(np.float32)}

    def embedded(self, pixels: np.ndarray) -> np.ndarray:
        """What the first layer reads, [batch, TOKENS, HIDDEN], in NumPy."""
        kernel, token, places = self._embedding()
        grid = IMAGE // PATCH
        patches = pixels.reshape(-1, 3, grid, PATCH, grid, PATCH).transpose(0, 2, 4, 1, 3, 5).reshape(-1, PATCHES, 48)
        patches = patches @ kernel.reshape(HIDDEN, 48).T
        return np.concatenate([np.broadcast_to(token, (len(pixels), 1, HIDDEN)), patches], 1) + places

    @staticmethod
    def _embedding() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The kernel of patches, the class token and the positions."""
        rng = np.random.default_rng(7)
        shapes = (HIDDEN, 3, PATCH, PATCH), (1, 1, HIDDEN), (1, TOKENS, HIDDEN)
        kernel, token, places = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        return kernel / 7, token, places / 2

    def _embedded(self, pixels: ir.Value) -> ir.Value:
        b = self.b
        arrays = zip(("patches.W", "class_token", "positions"), self._embedding(), strict=True)
        kernel, token, places = (self._constant(name, array) for name, array in arrays)
        y = b.op("Conv", pixels, kernel, kernel_shape=[PATCH] * 2, strides=[PATCH] * 2)
        zero, two, rest = (self._constant(f"whole{each}", np.array([each])) for each in (0, 2, -1))
        lead = b.op("Slice", b.op("Shape", y), zero, two, zero)
        y = b.op("Transpose", b.op("Reshape", y, b.op("Concat", lead, rest, axis=0)), perm=[0, 2, 1])
        batch = b.op("Unsqueeze", self._size(pixels, 0), zero)
        shape = b.op("Concat", batch, rest, rest, axis=0)  # -1 is the size that is there
        ones = b.op("ConstantOfShape", self._constant("rank", np.array([3])), value=ir.tensor(np.array([1])))
        stays = b.op("Equal", shape, b.op("Mul", ones, self._constant("minus", np.array(-1))))
        tokens = b.op("Expand", token, b.op("Where", stays, ones, shape))
        return b.op("Add", b.op("Concat", tokens, y, axis=1), places)

    def _attention(self, x: ir.Value) -> ir.Value:
        """With shapes put together from sizes."""
        b = self.b
        q, k, v = self._packed(x) if self.packed else self._apart(x)
        root = self._constant("root", np.array(WIDTH**-0.25, np.float32))
        k = b.op("Mul", b.op("Transpose", k, perm=[0, 2, 3, 1]), root)
        shares = b.op("Softmax", b.op("MatMul", b.op("Mul", q, root), k), axis=-1, name=f"{self.scope}softmax")
        return self._reshape(b.op("Transpose", b.op("MatMul", shares, v), perm=[0, 2, 1, 3]), x, HIDDEN)

    def _apart(self, x: ir.Value) -> tuple[ir.Value, ...]:
        """Queries and values [batch, heads, tokens, width], and keys before they are turned."""
        parts = (self._product(name, x, HIDDEN, HIDDEN, True) for name in ("q", "key", "v2"))
        q, k, v = (self._reshape(part, x, HEADS, WIDTH) for part in parts)
        return self.b.op("Transpose", q, perm=[0, 2, 1, 3]), k, self.b.op("Transpose", v, perm=[0, 2, 1, 3])

    def _packed(self, x: ir.Value) -> list[ir.Value]:
        b = self.b
        parts = self._reshape(self._product("qkv", x, HIDDEN, 3 * HIDDEN, True), x, 3, HEADS, WIDTH)
        parts = b.op("Transpose", parts, perm=[2, 0, 3, 1, 4])
        q, k, v = (b.op("Gather", parts, self._constant(f"part{each}", np.array(each)), axis=0) for each in range(3))
        return [q, b.op("Transpose", k, perm=[0, 2, 1, 3]), v]

    def _sum(self, x: ir.Value, y: ir.Value) -> ir.Value:
        if self.layer_scale:
            scale = np.linspace(0.3, 1, HIDDEN, dtype=np.float32)
            y = self.b.op("Mul", y, self._constant(f"gamma{len(self.b.graph)}", scale))
        return super()._sum(x, y)

    def _reshape(self, y: ir.Value, x: ir.Value, *tail: int) -> ir.Value:
        b = self.b
        zero = self._constant(f"zero_{len(b.graph)}", np.array([0]))
        lead = [b.op("Unsqueeze", self._size(x, 0), zero)]
        known = self._constant(f"tokens_{len(b.graph)}", np.array([TOKENS]))
        lead.append(known if self.sizes == "known" else b.op("Unsqueeze", self._size(x, 1), zero))
        end = self._constant(f"tail_{len(b.graph)}", np.array(tail))
        return b.op("Reshape", y, b.op("Concat", *lead, end, axis=0))

    def _size(self, x: ir.Value, axis: int) -> ir.Value:
        return self.b.op("Gather", self.b.op("Shape", x), self._constant(f"at_{len(self.b.graph)}", np.array(axis)))
