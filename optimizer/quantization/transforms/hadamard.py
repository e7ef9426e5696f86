"""Orthogonal matrices that spread what one channel holds over all: randomized Hadamard matrices, or ones of chance.

    x Q,   Q = diag(s) (H1 kron H2) / sqrt n,   s_j = +1 or -1,   H H' = n I, all entries +1 or -1

A number of magnitude m in one channel becomes n numbers of magnitude m / sqrt n, so that a scale per tensor, row or
block has no outliers to reach to (Ashkboos et al. 2024, QuaRot, arXiv 2404.00456, section 3; the signs are those of
Halko, Martinsson & Tropp 2011, arXiv 0909.4061, section 4.6).

Hadamard matrices are Sylvester's of powers of two, times one of Paley's (1933, J. Math. Phys. 12, 311) of order q + 1
or 2 (q + 1), q a prime: 12, 20, 28 and on. Where there is none of a size, Q comes from the QR decomposition of normal
numbers, whose entries are 1 / sqrt n but for chance.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from ..blas import one_thread_each

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_SEED = 0
_PIECE = 1 << 21
"""Numbers that are turned at once, in float64."""


@dataclasses.dataclass(frozen=True, eq=False)
class Orthogonal:
    """An orthogonal matrix Q [n, n], as a product.

    Attributes:
        signs: +1 or -1, [n].
        factors: Matrices whose Kronecker product Q has the shape of.
        mirror: A vector v [n]: I - 2 v v' / v'v follows; None for none.
    """

    signs: Doubles
    factors: tuple[Doubles, ...]
    mirror: Doubles | None = None

    @property
    def size(self) -> int:
        """How many channels it turns."""
        return len(self.signs)

    @property
    def is_hadamard(self) -> bool:
        """Whether all of its entries are of one magnitude, but for the mirror."""
        return len(self.factors) > 1

    def turn(self, rows: npt.NDArray[np.floating]) -> Doubles:
        """Rows [.., n] times Q."""
        turned = (rows * self.signs).reshape(-1, *map(len, self.factors))
        for axis, factor in enumerate(self.factors, 1):
            turned = np.moveaxis(np.moveaxis(turned, axis, -1) @ factor, -1, axis)
        flat: Doubles = turned.reshape(-1, self.size)
        if self.mirror is not None:
            flat = flat - np.outer(flat @ self.mirror, 2 / (self.mirror @ self.mirror) * self.mirror)
        return flat.reshape(rows.shape)

    def turn_along(self, array: Floats, axis: int, scale: Doubles | None = None) -> Floats:
        """Each n numbers along an axis times Q, rounded once, in place.

        Args:
            array: float32; contiguous, of two axes unless the axis is the last.
            axis: Of a size that is a multiple of n: so many vectors lie behind each other.
            scale: [n], by which the numbers are multiplied before.

        Returns:
            The array.
        """
        is_last = axis == array.ndim - 1
        flat = array.reshape(-1, array.shape[-1]) if is_last else array.T
        step = max(1, _PIECE // max(1, flat.shape[1]))
        with one_thread_each():
            for begin in range(0, len(flat), step):
                rows = flat[begin : begin + step].astype(np.float64)
                vectors = rows.reshape(-1, self.size) * (1.0 if scale is None else scale)
                flat[begin : begin + step] = self.turn(vectors).reshape(rows.shape)
        return array


def orthogonal(size: int, *, keeps_mean: bool = False) -> Orthogonal:
    """The same matrix of a size each time.

    Args:
        size: Of its rows and columns.
        keeps_mean: Whether it leaves a vector of ones as it is, so that the mean of what it turns stays.
    """
    generator = np.random.default_rng([_SEED, size])
    signs = generator.choice(np.array([-1.0, 1.0]), size)
    factors = _hadamard_factors(size)
    if not factors:
        with one_thread_each():
            basis, triangle = np.linalg.qr(generator.standard_normal((size, size)))
        factors = (basis * np.where(np.diagonal(triangle) < 0, -1.0, 1.0),)
    made = Orthogonal(signs, factors)
    if not keeps_mean:
        return made
    ones = np.ones(size)
    mirror = made.turn(ones) - ones  # a mirror swaps vectors of one length
    return dataclasses.replace(made, mirror=mirror) if np.abs(mirror).max() > np.finfo(np.float64).eps else made


def _hadamard_factors(size: int) -> tuple[Doubles, ...]:
    """Two matrices, over the roots of their sizes, whose Kronecker product is a Hadamard matrix; () for none."""
    twos = (size & -size).bit_length() - 1
    for power in range(twos, -1, -1):
        rest = size >> power
        if rest == 1:
            return _sylvester(power // 2), _sylvester(power - power // 2)
        if (first := _paley(rest)) is not None:
            return first / math.sqrt(rest), _sylvester(power)
    return ()


def _sylvester(power: int) -> Doubles:
    """Of size 2^power, over the root of that."""
    made = np.ones((1, 1))
    for _ in range(power):
        made = np.kron(made, np.array([[1.0, 1.0], [1.0, -1.0]]))
    return made / math.sqrt(len(made))


def _paley(size: int) -> Doubles | None:
    """A Hadamard matrix of a size by squares in a field of q numbers; None where no prime q makes one."""
    if size % 4:
        return None
    q = size - 1
    if _is_prime(q):  # q is 3 mod 4: -1 is no square
        return np.eye(size) + _bordered(q, -1.0)
    q = size // 2 - 1
    if q % 4 == 1 and _is_prime(q):
        pair = np.array([[1.0, 1.0], [1.0, -1.0]])
        turned = np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.kron(_bordered(q, 1.0), pair) + np.kron(np.eye(q + 1), turned)
    return None


def _bordered(q: int, sign: float) -> Doubles:
    """Jacobsthal's matrix of q, whose entry i, j says whether i - j is a square, with a border of ones."""
    character = np.full(q, -1.0)
    character[np.square(np.arange(1, q)) % q] = 1.0
    character[0] = 0.0
    made = np.ones((q + 1, q + 1))
    made[0, 0] = 0.0
    made[1:, 0] = sign
    made[1:, 1:] = character[(np.arange(q)[:, None] - np.arange(q)) % q]
    return made


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
