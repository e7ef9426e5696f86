"""The rewrite rules of onnxscript that clean-up applies, what each is known to be wrong on, and its guard.

A rule replaces a match only where its guard finds nothing of that kind. For all of them: nodes have one output, no
attribute stands for one of a function, and a rule whose check raises an exception does not apply. What all rules
ignore, that a caller may override what they take for a constant, is for `signature_kept`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import rule_guards as guards
from ..graph.rewriting import detach
from ..graph.rule_guards import Match


@dataclasses.dataclass(frozen=True)
class Trusted:
    """A rule that clean-up applies.

    Attributes:
        name: Its name in `onnxscript.rewriter.rules.common`.
        ends_in: The operator of the last node that it replaces; others are not tried, which saves most of the time.
        wrong_on: What it would spoil without its guard.
        guard: Whether a match is none of that.
        folds: Whether it computes weights, which have to be finite.
    """

    name: str
    ends_in: str
    wrong_on: str = ""
    guard: Callable[[Match], bool] = lambda _: True
    folds: bool = False


# Not among them: MatMul + Add stays as it is, for ONNX Runtime decides better when it sees the shapes. The rule for
# Slices that make a Split has two outputs, and the matcher walks the whole graph for each candidate of such a rule:
# minutes for a language model. Those for Dropout look for attributes that no opset from 7 on has, or that change
# nothing there.
TRUSTED = (
    Trusted("add_0_rule", "Add", "numbers within 1e-8 of 0", guards.constant_is(0)),
    Trusted("sub_0_rule", "Sub", "numbers within 1e-8 of 0", guards.constant_is(0)),
    Trusted("mul_by_1_rule", "Mul", "numbers within 1e-5 of 1", guards.constant_is(1)),
    Trusted("div_by_1_rule", "Div", "numbers within 1e-5 of 1", guards.constant_is(1)),
    Trusted(
        "affine_conv_fusion_rule",
        "Conv",
        "numbers that raise the rank, auto_pad, other types than float32, results that overflow",
        guards.numbers_ahead_of_conv,
        folds=True,
    ),
    Trusted(
        "conv_affine_fusion_rule",
        "Add",
        "numbers that raise the rank of the bias, other types than float32, results that overflow",
        guards.numbers_behind_conv,
        folds=True,
    ),
    Trusted(
        "cast_cast_rule", "Cast", "float64 and wide integers, which the cast between rounds first", guards.exact_cast
    ),
    Trusted("cast_constant_of_shape_rule", "Cast", "a number that the new type does not hold", guards.cast_of_number),
    Trusted(
        "cast_constant_of_shape_without_value_rule", "Cast", "strings and types of few bits", guards.cast_of_number
    ),
    Trusted("collapse_slice_rule", "Slice"),
    Trusted(
        "collapse_slice2_rule", "Slice", "sizes that have the same name and differ", guards.sliced_sizes_are_numbers
    ),
    Trusted(
        "flatten_to_reshape_rule",
        "Flatten",
        "tensors without elements, of which -1 tells no size",
        guards.flat_size_is_known,
    ),
    *(
        Trusted(
            f"fuse_batchnorm_into_{product}_rule",
            "BatchNormalization",
            "training (training_mode, more outputs), spatial=0, mixed types, beta of a Gemm, results that overflow",
            guards.normalization_of_inference,
            folds=True,
        )
        for product in ("conv", "conv_transpose", "gemm")
    ),
    Trusted("fuse_pad_into_conv_rule", "Conv", "pads as an attribute, up to opset 10", guards.pads_are_an_input),
    Trusted("max_max_rule", "Max", "opsets without broadcasting, constants that grow", guards.bounds_are_numbers),
    Trusted("min_min_rule", "Min", "opsets without broadcasting, constants that grow", guards.bounds_are_numbers),
    Trusted(
        "max_min_rule",
        "Min",
        "opsets and types without such a Clip, numbers that raise the rank",
        guards.bounds_of_clip,
    ),
    Trusted(
        "min_max_rule",
        "Max",
        "opsets and types without such a Clip, numbers that raise the rank",
        guards.bounds_of_clip,
    ),
    Trusted("no_op_cast_rule", "Cast"),
    Trusted(
        "no_op_dynamic_scatter_nd_rule",
        "ScatterND",
        "sizes that have the same name and differ",
        guards.scatters_known_sizes,
    ),
    Trusted("no_op_expand_rule", "Expand"),
    Trusted(
        "no_op_static_scatter_nd_rule",
        "ScatterND",
        "a reduction; sizes without a number",
        guards.scatter_without_reduction,
    ),
    Trusted("no_op_transpose_rule", "Transpose"),
    Trusted(
        "normalize_pad_format_conv_rule", "Conv", "dilations; pads beside auto_pad", guards.same_padding_of_dense_kernel
    ),
    Trusted(
        "two_reshapes_matmul_reshape_rule",
        "Reshape",
        "a Reshape that changes what is multiplied",
        guards.reshapes_rows_alone,
    ),
    Trusted(
        "one_reshape_matmul_reshape_rule",
        "Reshape",
        "a Reshape that changes what is multiplied",
        guards.reshapes_rows_alone,
    ),
    Trusted("remove_optional_bias_from_conv_rule", "Conv"),
    Trusted("remove_optional_bias_from_conv_transpose_rule", "ConvTranspose"),
    Trusted("remove_optional_bias_from_gemm_rule", "Gemm", "opsets before 11, which ask for a bias", guards.opset(11)),
    Trusted("reshape_reshape_rule", "Reshape"),
    Trusted("squeeze_reshape_1d_rule", "Reshape"),
    Trusted(
        "successive_clip_relu_rule", "Clip", "bounds as attributes, bounds that cross, unknown types", guards.clips
    ),
    Trusted("successive_clip_rule", "Clip", "bounds as attributes, bounds that cross, unknown types", guards.clips),
    Trusted(
        "successive_relu_clip_rule", "Relu", "bounds as attributes, bounds that cross, unknown types", guards.clips
    ),
    Trusted("successive_relu_rule", "Relu"),
    Trusted("transpose_transpose_rule", "Transpose"),
    Trusted("unsqueeze_unsqueeze_rule", "Unsqueeze"),
)


class GuardedRule:
    """A rule of onnxscript behind its guard; to a rule set it looks like the rule.

    Attributes:
        failed: What the rule raised, by its name, to be told to the user.
    """

    def __init__(self, rule: Any, trusted: Trusted, failed: dict[str, str]) -> None:
        self._rule, self._trusted, self.failed = rule, trusted, failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, graph: ir.Graph | ir.Function, node: ir.Node, **more: Any) -> Any:
        """What is to replace a match that ends at a node; None where there is none, or none that can be trusted."""
        if node.op_type != self._trusted.ends_in:
            return None
        if isinstance(graph, ir.Function):  # its opsets are its own, and what ONNX Runtime makes of them
            return None
        try:
            match = self._rule.match(model, graph, node, check_nodes_are_removable=self._rule.remove_nodes)
        except Exception:  # checks that come across what they did not think of
            return None
        if not match or not self._is_trusted(Match(model, match)):
            return None
        try:
            with np.errstate(all="ignore"):
                replacement = self._rule.try_rewrite(model, graph, node, **more)
        except Exception as error:  # rules raise whatever they come across
            self.failed[self._trusted.name] = f"{type(error).__name__}: {error}"
            return None
        if replacement is not None and self._trusted.folds and not _are_finite(replacement.new_initializers):
            for new in replacement.new_nodes:
                detach(new)
            return None
        for value in replacement.new_initializers if replacement is not None else ():
            _name_apart(value, graph, set(match.nodes))
        return replacement

    def _is_trusted(self, match: Match) -> bool:
        return (
            all(len(node.outputs) == 1 for node in match.nodes)
            and not any(attribute.is_ref() for node in match.nodes for attribute in node.attributes.values())
            and self._trusted.guard(match)
        )


def _are_finite(values: list[ir.Value]) -> bool:
    arrays = [value.const_value.numpy() for value in values if value.const_value is not None]
    return all(np.isfinite(array).all() for array in arrays)


def _name_apart(value: ir.Value, graph: ir.Graph, replaced: set[ir.Node]) -> None:
    """Name a new constant like no other of the graph, but for those that only nodes which are replaced read."""
    wanted = name = value.name or "constant"
    count = 1
    while (old := graph.initializers.get(name)) is not None and not _goes_with(old, replaced):
        name, count = f"{wanted}_{count}", count + 1
    value.name = name


def _goes_with(value: ir.Value, replaced: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(node in replaced for node, _ in value.uses())
