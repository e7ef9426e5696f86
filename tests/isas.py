"""The instruction sets of this CPU, and whose code a product runs on each."""

from __future__ import annotations

from onnxpress.custom_ops import _kernels, reference

ISAS = _kernels.supported_isas()


def best_kernels(isa: str, *kinds: str, but: tuple[str, ...] = ()) -> str:
    """The instruction set whose kernels run on `isa`: the first that has such, by kind, and suits the sizes."""
    return next(name for kind in kinds for name in _kernels.kernels(isa)[kind] if name not in but)


def code_that_runs(isa: str, accuracy_level: int, M: int, block_size: int, K: int) -> str:
    """The instruction set whose code computes MatMulNBits."""
    spans = reference.activation_block(block_size, K) % 32 == 0
    unsuited = {"amx": M < 12 or not spans, "i8mm": M < 6 or not spans}
    kinds = {3: ["nbits_bfloat16", "nbits_float"], 4: ["nbits_int8"]}.get(accuracy_level, ["nbits_float"])
    return best_kernels(isa, *kinds, but=tuple(name for name, is_unsuited in unsuited.items() if is_unsuited))


def level_computed(ran: str, accuracy_level: int) -> int:
    """Level 3 is float32 where the code that ran has no products of bfloat16."""
    return 0 if accuracy_level == 3 and ran not in _kernels.kernels(ran)["nbits_bfloat16"] else accuracy_level
