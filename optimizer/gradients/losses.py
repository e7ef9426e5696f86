"""How far outputs of a model are from those of the float model."""

from __future__ import annotations

from typing import Any

import torch

_PIECE = 1 << 22
"""Logits that are looked at together."""
_LEAST = 1e-30


def divergence(logits: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean Kullback-Leibler divergence of predictions from others, in nats per token.

    That is 1/n sum_i sum_v p_i(v) (log p_i(v) - log q_i(v)), whose derivative by the logits of q is (q - p) / n; one
    array of their size is kept for it.

    Args:
        logits: Of q, [..., vocabulary].
        wanted: Of p, the same.
        mask: Which tokens count, [...]; all without one.
    """
    found: torch.Tensor = _Divergence.apply(logits, wanted, mask)
    return found


def squared_error(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The squared error of an output, of its squares.

    Args:
        found: The output.
        wanted: Its values in the float model.
        mask: Which of its first two axes count; all without one.
    """
    if mask is not None and found.shape[: mask.ndim] == mask.shape:
        found, wanted = found[mask], wanted[mask]
    return torch.square(found - wanted).sum() / torch.square(wanted).sum().clamp(min=_LEAST)


class _Divergence(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(context: Any, logits: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x, y = (each.reshape(-1, logits.shape[-1]) for each in (logits, wanted))
        counts = torch.ones(len(x), dtype=torch.bool) if mask is None else mask.reshape(-1)
        n = max(int(counts.sum()), 1)
        slope = torch.empty_like(x) if context.needs_input_grad[0] else None
        nats = torch.zeros((), dtype=torch.float64)
        step = max(1, _PIECE // x.shape[1])
        for part in (slice(begin, begin + step) for begin in range(0, len(x), step)):
            log_p, log_q = torch.log_softmax(y[part], -1), torch.log_softmax(x[part], -1)
            p, q = log_p.exp(), log_q.exp()
            terms = torch.where(p > 0, p * (log_p - log_q), torch.zeros(()))
            nats += terms.sum(-1, dtype=torch.float64)[counts[part]].sum()
            if slope is not None:
                slope[part] = (q - p) * (counts[part, None] / n)
        context.slope = None if slope is None else slope.reshape(logits.shape)
        return (nats / n).to(torch.float32)

    @staticmethod
    def backward(context: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return context.slope.mul_(slope), None, None
