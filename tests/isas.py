"""The instruction sets of this CPU, and whose code a product runs on each."""

from __future__ import annotations

from onnxpress.custom_ops import _kernels, reference

ISAS = _kernels.supported_isas()


def code_that_runs(isa: str, accuracy_level: int, M: int, block_size: int, K: int) -> str:
    """The instruction set whose code computes MatMulNBits: `isa`, or the best below it that has such code."""
    of_its_own = {
        "avxvnni": accuracy_level == 4,
        "avx512vbmi": False,
        "avx512bf16": accuracy_level == 3,
        "amx": accuracy_level >= 3 and M >= 12 and reference.activation_block(block_size, K) % 32 == 0,
    }
    if of_its_own.get(isa, True):
        return isa
    return "avx2" if isa == "avxvnni" else "avx512vnni"


def level_computed(ran: str, accuracy_level: int) -> int:
    """Level 3 is float32 where the code that ran has no products of bfloat16."""
    return 0 if accuracy_level == 3 and ran not in ("avx512bf16", "amx") else accuracy_level
