"""What encoders do between the projections of a self-attention as one node, com.microsoft::MultiHeadAttention.

    y = softmax(f q k' + mask) v,   head by head                    (Vaswani et al., 2017, arXiv:1706.03762, eq. 1)
      = MultiHeadAttention(q, k, v, mask; scale = f)

of q, k and v as the projections make them, [batch, sequence, heads * width]. These stay as they are, to become
something else than dense products.
"""

from __future__ import annotations

from ..graph.encoder_attention import Attention, AttentionCore
from .fuse_attention import FuseAttention


class FuseHeads(FuseAttention):
    """Fuse the inner part of every self-attention of the main graph that is wholly understood; see `FuseAttention`."""

    def _fuse(self, found: Attention) -> str | None:
        self._fuse_core(found if isinstance(found, AttentionCore) else found.core)
        return None
