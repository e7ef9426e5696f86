"""What a decoder of the tests is, and the ways in which exporters spell it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Form:
    """A decoder, and how its graph is spelled.

    Args:
        heads: Of queries.
        shared: Of keys and values.
        width: Of a head.
        layers: How many.
        rotary: "half" (angles twice over, side by side), "pairs" (of neighbours), "picked" (their angles doubled by
            GatherND), "elements" (theirs of a table that is repeated for each row of the batch), "once" (angles not
            doubled), "part" (half of each head), "table" (rows of a constant), "range" (positions counted from the
            past) or "none".
        norms: "rms", "reciprocal" (spelled otherwise) or "layer".
        head_norms: Norms of queries and keys "before" or "after" heads are the second axis; "" for none.
        products: "apart", "packed" (one for all), "by head" (one, whose columns are query, key and value of each),
            "groups" (likewise of two groups of heads, the value before the key) or "unsqueezed" (one, which has an axis
            of heads before it is split).
        bias: Whether products add one.
        mask: "where" (chosen by booleans, and what is NaN made nothing), "added" (numbers), "chosen" (scores or a
            number), "window" (of 3 keys), "table" (chosen by a constant of 3 keys a query, and numbers added), "future"
            (keys behind a query count, too), "types" (so do those of tokens of type 1 among each other) or "none".
        cap: Of scores.
        distance: What is added for the place of a key, by head: "table" (of a constant), "counted" (of keys that count)
            or "" (nothing).
        flat: Whether products are of [batch * heads, sequence, width].
        scale: "scores", "both" (queries and keys), "sizes" (computed of the width), "masked" (scores behind their
            mask) or "none".
        repeat: "expand" or "tile".
        reads: Whether keys are read by something else, too.
        hidden: Of the residual stream.
        cached: Whether there is a past; without one there is no mask either.
        tied: Whether the last weight is the table of tokens.
    """

    heads: int = 4
    shared: int = 2
    width: int = 16
    layers: int = 1
    rotary: str = "half"
    norms: str = "rms"
    head_norms: str = ""
    products: str = "apart"
    bias: bool = False
    mask: str = "where"
    distance: str = ""
    flat: bool = False
    cap: float = 0.0
    scale: str = "scores"
    repeat: str = "expand"
    reads: bool = False
    hidden: int = 32
    cached: bool = True
    tied: bool = False
