"""Standard clean-up before quantization: inlining, constant folding, dead code, and the common fusions.

Everything comes from onnx-ir and onnxscript. Large constants are never folded, so that no weight is materialized but
those that a BatchNormalization is folded into.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import onnx_ir as ir
from onnxpress.custom_ops import functions

from .fold_reshape import FoldReshape
from .kept_names import inner_names_kept, replaced_names_kept

# onnxscript's default rules but two kinds. Its rule for Slices that make a Split has two outputs, and the matcher
# walks the whole graph for each candidate of such a rule: minutes for a language model. And MatMul + Add stays as it
# is: ONNX Runtime decides better when it sees the shapes.
_RULES = (
    "add_0_rule", "affine_conv_fusion_rule", "cast_cast_rule", "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule", "collapse_slice2_rule", "collapse_slice_rule",
    "conv_affine_fusion_rule", "div_by_1_rule", "dropout_inference_rule", "dropout_zero_rule",
    "flatten_to_reshape_rule", "fuse_batchnorm_into_conv_rule", "fuse_batchnorm_into_conv_transpose_rule",
    "fuse_batchnorm_into_gemm_rule", "fuse_pad_into_conv_rule", "max_max_rule", "max_min_rule", "min_max_rule",
    "min_min_rule", "mul_by_1_rule", "no_op_cast_rule", "no_op_dynamic_scatter_nd_rule", "no_op_expand_rule",
    "no_op_static_scatter_nd_rule", "no_op_transpose_rule", "normalize_pad_format_conv_rule",
    "one_reshape_matmul_reshape_rule", "remove_optional_bias_from_conv_rule",
    "remove_optional_bias_from_conv_transpose_rule", "remove_optional_bias_from_gemm_rule", "reshape_reshape_rule",
    "squeeze_reshape_1d_rule", "sub_0_rule", "successive_clip_relu_rule", "successive_clip_rule",
    "successive_relu_clip_rule", "successive_relu_rule", "transpose_transpose_rule",
    "two_reshapes_matmul_reshape_rule", "unsqueeze_unsqueeze_rule",
)  # fmt: skip

STEPS = (
    "inlining", "constant folding", "FoldReshape", *_RULES, "common subexpressions", "unused nodes",
)  # fmt: skip
"""What a clean-up consists of, in order; rules are applied together, again and again."""


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without the warnings of onnxscript and onnx-ir on nodes that they do not know."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class CleanUp:
    """Inline functions, fold constants, apply fusion rules, and remove what is double or unused."""

    def __init__(self, without: Collection[str] = ()) -> None:
        """Choose steps.

        Args:
            without: Those of `STEPS` to leave out.
        """
        self._without = frozenset(without)

    def __call__(self, model: ir.Model) -> bool:
        """Clean up; whether anything changed."""
        with _quiet_libraries():
            return self._clean_up(model)

    def _clean_up(self, model: ir.Model) -> bool:
        import onnx_ir.passes.common as common
        from onnxscript.optimizer import fold_constants
        from onnxscript.rewriter import RewritePass
        from onnxscript.rewriter.rules import common as rules

        # Bodies of our own operators are for whoever lacks our library; a model that has them is quantized already.
        inline = common.InlinePass(lambda function: function.domain != functions.DOMAIN)
        # Rules come and go with versions of onnxscript.
        known = [getattr(rules, name) for name in _RULES if hasattr(rules, name) and name not in self._without]

        def step(name: str, change: Callable[[ir.Model], Any]) -> bool:
            if name in self._without:
                return False
            result = change(model)
            return bool(result if isinstance(result, bool) else result.modified)

        with inner_names_kept(model):
            modified = step("inlining", inline)
            modified |= step("constant folding", partial(fold_constants, onnx_shape_inference=True))
        modified |= step("FoldReshape", FoldReshape())
        # No elimination of Identity: onnx-ir's fails where a branch of an If hands an outer value through.
        with replaced_names_kept(model):
            modified |= bool(known) and RewritePass(known)(model).modified
        modified |= step("common subexpressions", common.CommonSubexpressionEliminationPass())
        modified |= step("unused nodes", common.RemoveUnusedNodesPass())
        modified |= common.RemoveUnusedFunctionsPass()(model).modified  # type: ignore[no-untyped-call]
        return modified | common.RemoveUnusedOpsetsPass()(model).modified
