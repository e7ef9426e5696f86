"""Pruning in blocks: which go, what becomes of the rest, and the compressed form. Arrays only, no ONNX."""

from .allocate import allocate, keep_best
from .blocks import Block, Compressed, encode, expand, occupied
from .criteria import magnitude_scores, output_error, wanda_scores
from .obs import obs_scores, reconstruct

__all__ = [
    "Block",
    "Compressed",
    "allocate",
    "encode",
    "expand",
    "keep_best",
    "magnitude_scores",
    "obs_scores",
    "occupied",
    "output_error",
    "reconstruct",
    "wanda_scores",
]
