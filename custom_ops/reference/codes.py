"""How codes of a few bits are packed into bytes, by bit planes."""

from __future__ import annotations

import numpy as np

from .types import UInt8

PLANES = {bits: tuple(w for w in (8, 4, 2, 1) if bits & w) for bits in range(2, 9)}
"""Widths of the bit planes of a code, lowest bits first: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1."""


def _pack_plane(codes: UInt8, width: int) -> UInt8:
    """Pack the last axis at `width` bits a code, first code in the low bits, padded with zeros to whole bytes."""
    per_byte = 8 // width
    padding = -codes.shape[-1] % per_byte
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, padding)])
    groups = padded.reshape(*padded.shape[:-1], -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
    packed: UInt8 = np.bitwise_or.reduce(groups << shifts, axis=-1).astype(np.uint8)
    return packed


def _unpack_plane(packed: UInt8, width: int, count: int) -> UInt8:
    shifts = np.arange(8 // width, dtype=np.uint8) * np.uint8(width)
    codes = (packed[..., None] >> shifts) & np.uint8(2**width - 1)
    flat: UInt8 = codes.reshape(*packed.shape[:-1], -1)[..., :count]
    return flat


def pack_codes(codes: UInt8, bits: int) -> UInt8:
    """Pack codes along the last axis as bit planes.

    Args:
        codes: uint8 [..., count], each below 2**bits.
        bits: 2 to 8.

    Returns:
        uint8 [..., sum of ceil(count * width / 8) over the planes], the plane of the lowest bits first.
    """
    planes, shift = [], 0
    for width in PLANES[bits]:
        planes.append(_pack_plane((codes >> np.uint8(shift)) & np.uint8(2**width - 1), width))
        shift += width
    return np.concatenate(planes, axis=-1)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes that `pack_codes` packs."""
    return sum(-(-count * width // 8) for width in PLANES[bits])


def _unpack(packed: UInt8, bits: int, count: int) -> UInt8:
    """Invert `pack_codes` for `count` codes a row."""
    codes = np.zeros((*packed.shape[:-1], count), np.uint8)
    begin = shift = 0
    for width in PLANES[bits]:
        end = begin + -(-count * width // 8)
        codes |= _unpack_plane(packed[..., begin:end], width, count) << np.uint8(shift)
        begin, shift = end, shift + width
    return codes


def unpack_codes(packed: UInt8, bits: int, block_size: int, K: int) -> UInt8:
    """Codes of a packed weight.

    Args:
        packed: uint8 [N, n_blocks, block_size * bits / 8].
        bits: 2 to 8.
        block_size: Codes in a block.
        K: Length of the reduction; n_blocks is ceil(K / block_size).

    Returns:
        uint8 [N, K].
    """
    codes = _unpack(packed, bits, block_size)
    return np.ascontiguousarray(codes.reshape(packed.shape[0], -1)[:, :K])


def pack_zero_points(zero_points: UInt8, bits: int) -> UInt8:
    """Pack uint8 [N, n_blocks] row by row, by the planes of `pack_codes`."""
    return pack_codes(zero_points, bits)


def unpack_zero_points(packed: UInt8, bits: int, n_blocks: int) -> UInt8:
    """Invert `pack_zero_points`; uint8 [N, n_blocks]."""
    return _unpack(packed, bits, n_blocks)
