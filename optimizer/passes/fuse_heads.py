"""What encoders do between the projections of a self-attention as one node, com.microsoft::MultiHeadAttention.

    y = softmax(f q k' + mask) v,   head by head                    (Vaswani et al., 2017, arXiv:1706.03762, eq. 1)
      = MultiHeadAttention(q, k, v, mask; scale = f)

of q, k and v as the projections make them, [batch, sequence, heads * width]. These stay as they are, to become
something else than dense products.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.rewriting import insert_before, replace
from ..model_io.names import names_of
from .fuse_attention import MICROSOFT, FoundAttention, FuseAttention, scope


class FuseHeads(FuseAttention):
    """Fuse the inner part of every self-attention of the main graph that is wholly understood; see `FuseAttention`."""

    TAKES_PACKED = False

    def _fuse(self, found: FoundAttention) -> None:
        inputs: list[ir.Value | None] = [projection.result for projection in found.projections]
        if found.mask is not None:
            inputs += [None, self._mask(found.mask)]
        y = insert_before(
            found.last, "MultiHeadAttention", inputs, found.last.outputs[0], domain=MICROSOFT, suffix="",
            attributes={"num_heads": found.query.heads.count},
        )  # fmt: skip
        node = y.producer()
        assert node is not None
        node.name = names_of(self._graph).node(f"{scope(found.query.product)}MultiHeadAttention")
        node.attributes["scale"] = ir.AttrFloat32("scale", found.factor)
        if found.mask is not None:
            node.attributes["mask_filter_value"] = ir.AttrFloat32("mask_filter_value", found.mask.filter_value)
        replace(found.last, y)
        self.fused[node] = tuple(projection.product for projection in found.projections)
