"""What of this machine decides how a model is rounded."""

from __future__ import annotations

from onnxpress.custom_ops import _kernels


def products_saturate() -> bool:
    """Whether ONNX Runtime adds products of uint8 and int8 up in int16 here, which codes of 8 bits overflow.

    So it does on x86 with AVX2 but without VNNI, whose instruction for four products sums two of them first.
    """
    known = _kernels.supported_isas()
    return "avx2" in known and not any("vnni" in isa for isa in known)
