"""Second-order pruning: what removing a block costs once the weights that are left make up for it.

Of an output w the error is (v - w)' H (v - w), H = X'X / n. Removing the weights P, with all others free to move, costs

    w_P' (G_PP)^-1 w_P,                 G = H^-1,
    v = w - G_:P (G_PP)^-1 w_P,         and G of what is left is G - G_:P (G_PP)^-1 G_P:

(Hassibi and Stork, "Second order derivatives for network pruning: optimal brain surgeon", 1993; for layers Frantar and
Alistarh, 2022, arXiv:2208.11580; for structures Kurtic et al., "ZipLM", 2023, arXiv:2302.04089). Outputs that share
blocks share P and G, and their costs add up. Each row of blocks is emptied step by step, a share of what is left at a
time, all in the same step by what they cost alone. The cost at which a block goes, never less than that of one that
went before, is its score: a threshold on it then gives every sparsity from one pass, and compares rows and layers. That
takes time as K^3 a row; of more than 3,072 inputs blocks keep the cost that they have alone.

What is kept is last solved for exactly, under the final mask S: v_S = (H_SS)^-1 (H w)_S. Where the input is no longer
x but y, of moments H = Y'Y / n and J = Y'X / n, because layers before this one were pruned, v_S = (H_SS)^-1 (J w)_S
comes closest to the output that there was (as Frantar and Alistarh, 2022, section 5, have it).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..quantization.blas import one_thread_each, pool
from ..quantization.threads import threads
from .blocks import Block, Floats, Mask, tiles
from .criteria import Scores

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it: what SparseGPT takes (Frantar and Alistarh, 2023,
arXiv:2301.00774)."""
_SHARE = 6  # one block of so many goes in a step; one by one the error is less by 1 %, in five times the time
_MOST_INPUTS = 3072
_SHARED = 768  # inputs from which on threads share rows of blocks
_APART = 1e-12  # between equal scores, so that their order stays that of removal
_LEAST = 1e-30

Doubles = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]


def damped(gram: Floats) -> Doubles:
    """H with some of the mean of its diagonal added: positive definite, also where an input never varies."""
    wide = gram.astype(np.float64)
    mean = float(np.diagonal(wide).mean()) if len(wide) else 0.0
    return wide + (DAMPING * mean or 1.0) * np.eye(len(wide))


def obs_scores(weight: Floats, gram: Floats, block: Block) -> Scores:
    """The error that each block costs when it is removed after all of lower score in its row.

    Args:
        weight: W [K, N].
        gram: H [K, K], symmetric and positive semidefinite.
        block: Sizes of a block.

    Returns:
        float64 [rows, columns], in units of the squared output.
    """
    rows, columns = block.grid(weight.shape)
    inverse = np.eye(columns * block.k)
    inverse[: len(gram), : len(gram)] = np.linalg.inv(damped(gram))
    G = inverse.astype(np.float32)
    groups = tiles(weight, block).transpose(0, 1, 3, 2).reshape(rows, columns * block.k, block.n).astype(np.float32)
    empty = _emptied if len(gram) <= _MOST_INPUTS else _costs
    # Of short rows Python's part, which threads cannot share, weighs too much.
    shared = threads() if len(gram) >= _SHARED else 1
    with one_thread_each(), ThreadPoolExecutor(shared) as workers:
        return np.stack(list(workers.map(lambda group: empty(group, G, block.k), groups)))


def _emptied(weights: Singles, G: Singles, k: int) -> Doubles:
    """Scores of the blocks [columns] of one row, its weights being [K, n]."""
    left = np.arange(len(weights) // k)
    order: list[npt.NDArray[np.intp]] = []
    shares: list[Doubles] = []
    while len(left):
        costs = _costs(weights, G, k)
        count = -(-len(left) // _SHARE)
        gone = np.argpartition(costs, count - 1)[:count] if count < len(left) else np.arange(len(left))
        gone = gone[np.argsort(costs[gone], kind="stable")]
        stays = np.ones(len(left), np.bool_)
        stays[gone] = False
        P, S = (_elements(np.nonzero(part)[0], k) for part in (~stays, stays))
        inner = np.linalg.inv(G[np.ix_(P, P)])
        w = weights[P]
        joint = float(np.einsum("pn,pn->", w, inner @ w))
        order.append(left[gone])
        shares.append(costs[gone] * (joint / max(float(costs[gone].sum()), _LEAST)))
        across = G[P].take(S, axis=1)
        moved = inner @ across
        weights = weights[S] - moved.T @ w
        G = G[S].take(S, axis=1)
        G -= across.T @ moved
        left = left[stays]
    rising = np.maximum.accumulate(np.concatenate(shares))
    scores = np.empty(len(rising))
    scores[np.concatenate(order)] = rising * (1 + _APART * np.arange(len(rising)))
    return scores


def _costs(weights: Singles, G: Singles, k: int) -> Doubles:
    """w_P' (G_PP)^-1 w_P of each block P, summed over outputs."""
    count = len(weights) // k
    w = weights.reshape(count, k, -1)
    if k == 1:
        alone = np.square(w, dtype=np.float64).sum(axis=(1, 2)) / np.maximum(np.diagonal(G), _LEAST)
        return np.asarray(alone, np.float64)
    at = np.arange(count)
    inner = G.reshape(count, k, count, k)[at, :, at, :].astype(np.float64)
    costs: Doubles = np.einsum("bkn,bkn->b", w, np.linalg.solve(inner, w.astype(np.float64)))
    return costs


def _elements(blocks: npt.NDArray[np.intp], k: int) -> npt.NDArray[np.intp]:
    return (blocks[:, None] * k + np.arange(k)).ravel()


def reconstruct(weight: Floats, gram: Floats, mask: Mask, block: Block, cross: Floats | None = None) -> Singles:
    """The weight under a mask whose output is closest to that of the whole one.

    Args:
        weight: W [K, N].
        gram: H [K, K], of the input that the result is for.
        mask: bool [rows, columns]: which blocks are kept.
        block: Sizes of a block.
        cross: J [K, K], that input times the one that W was for; H where they are the same.

    Returns:
        V float32 [K, N], zero outside the mask: the least of |Y V - X W|^2 / n, with a damping that draws V towards W.
    """
    H, K, wide = damped(gram), len(gram), weight.astype(np.float64)
    target = H @ wide if cross is None else cross @ wide + (H[0, 0] - gram[0, 0]) * wide
    found = np.zeros(weight.shape, np.float32)

    def solve(row: int) -> None:
        kept = _elements(np.nonzero(mask[row])[0], block.k)
        kept = kept[kept < K]
        outputs = slice(row * block.n, (row + 1) * block.n)
        if len(kept) == K and cross is None:
            found[:, outputs] = weight[:, outputs]
        elif len(kept):
            found[kept, outputs] = np.linalg.solve(H[np.ix_(kept, kept)], target[kept, outputs])

    with pool() as workers:
        list(workers.map(solve, range(len(mask))))
    return found
