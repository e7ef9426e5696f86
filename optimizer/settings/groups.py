"""Settings of numbers and data, in groups that families of schemes read as a whole.

They are small dataclasses, which `Recipe` puts together with those of `graph_groups`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..quantization.schemes import ACTIVATION_FORMATS, FORMAT_ALIASES, SCALE_TYPES, SCHEMES, WEIGHT_FORMATS
from .budget import BUDGET, TIME, written_budget, written_time
from .setting import between, least, setting

TRAINED = ("signround-blocks", "dwq")
"""Methods that train by gradients, from what the others make."""
ROTATION = "hadamard"
"""The transform that needs no data, and leaves no scales."""


@dataclasses.dataclass(frozen=True)
class General:
    """What every scheme reads."""

    scheme: str = setting(
        "int4",
        "int2, int3, int4, int5, int6, int8: bits of a weight; fp8, fp8-e3m4, fp8-e5m2, fp6, fp6-e2m3, fp6-e3m2, fp4: "
        "sign, exponent and mantissa; nf4; mxfp8, mxfp6, mxfp4: Microscaling; bfp8, bfp6, bfp4: integers with scales "
        "that are powers of two. int8-static and int8-dynamic round activations too, with scales from a calibration or "
        "from each tensor as it comes, and so do fp8-static, fp8-e3m4-static, fp8-e5m2-static, fp8-mixed-static and "
        "fp8-dynamic. sparse leaves out blocks of weights. float rounds nothing, and fuses alone.",
        choices=tuple(SCHEMES),
        per_node=True,
    )
    freeze_inputs: bool = setting(
        False,
        "Take inputs that have a value in the file for constants, which no caller can give another value any more: old "
        "exporters listed all weights as inputs, and such weights are not rounded otherwise.",
        option="--freeze-inputs/--open-inputs",
    )
    clean_up: bool = setting(
        True, "Fold constants and fuse standard patterns first.", option="--clean-up/--no-clean-up"
    )
    check: bool | None = setting(
        None,
        "Run the model before and after, on calibration data or on random inputs, and compare; by default up to 500 MB "
        "of weights.",
        option="--check/--no-check",
    )
    include: tuple[str, ...] = setting(
        (),
        "Only nodes of these names, or whose names match these glob patterns. A node of an inner graph goes by its "
        "name, and by that behind those of the nodes around it, with slashes.",
    )
    exclude: tuple[str, ...] = setting((), "The same of nodes to keep in float.")


@dataclasses.dataclass(frozen=True)
class Search:
    """How weights get their scales."""

    search: bool = setting(
        True,
        "Search each scale, errors of large weights counting more, instead of taking it from min and max.",
        option="--search/--no-search",
        per_node=True,
    )


@dataclasses.dataclass(frozen=True)
class Symmetry:
    """Zero points."""

    symmetric: bool | None = setting(
        None,
        "One fixed zero point instead of one per block or tensor; of activations where the scheme rounds them. By "
        "default as suits the scheme.",
        option="--symmetric/--asymmetric",
        per_node=True,
    )


@dataclasses.dataclass(frozen=True)
class Channels:
    """Scales of weights without blocks."""

    per_channel: bool = setting(
        True,
        "One scale per output channel of a weight rather than one in all, where weights have no blocks.",
        option="--per-channel/--per-tensor",
    )


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Weights alone, with a scale per block."""

    block_size: int | None = setting(
        None,
        "Weights along K that share a scale: 16, 32, 64, 128 or 256, or 0 for all of an output channel; by default as "
        "suits the scheme.",
        choices=(0, 16, 32, 64, 128, 256),
        per_node=True,
    )
    scale_type: str | None = setting(
        None,
        "half (numbers of float16 as float32, which our kernels hold in 16 bits), float32 or float16; of "
        "floating-point weights also bfloat16, e8m0 (powers of two in 8 bits) or pow2 (powers of two as float32).",
        choices=SCALE_TYPES,
        per_node=True,
    )
    form: str = setting(
        "qoperator",
        "qoperator (com.microsoft::MatMulNBits where stock ONNX Runtime has the bits, else an operator of ours), qdq "
        "(DequantizeLinear) or onnxpress (our operator for all bits).",
        choices=("qoperator", "qdq", "onnxpress"),
    )
    accuracy_level: int | None = setting(
        None,
        "Least precision of the computation: 4 rounds activations to int8, 3 to bfloat16, 0 to 2 are float32; by "
        "default 4, or 3 for weights that are no integers.",
        choices=(0, 1, 2, 3, 4),
        per_node=True,
    )
    embeddings: bool = setting(
        False, "Quantize large Gather tables too (4 and 8 bits).", option="--embeddings/--no-embeddings"
    )


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What tensors are rounded within, from a calibration."""

    range_method: str | None = setting(
        None,
        "How the range of a tensor comes from what a calibration saw: minmax (default of floating-point numbers), "
        "moving-average, percentile (default of integers), or, of integers alone, entropy or mse.",
        choices=("minmax", "moving-average", "percentile", "entropy", "mse"),
    )
    percentile: float = setting(
        99.999, "Share of the values, in percent, that the method percentile keeps.", parse=between(50, 100)
    )


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What schemes that see data can do with it."""

    smooth: bool | None = setting(
        None,
        "Move outliers of activations into the weights of the products that read them, at the price of a Mul where no "
        "constant takes their scale; by default only what costs nothing, where there is data.",
        option="--smooth/--no-smooth",
    )
    restore_moments: bool | None = setting(
        None,
        "Give each channel of a Conv its mean and deviation on the data back; by default where there is data and, if a "
        "metric is given, the model is better for it.",
        option="--restore-moments/--no-restore-moments",
    )


@dataclasses.dataclass(frozen=True)
class Judging:
    """What a model may lose, and by what it is judged."""

    max_drop: float | None = setting(
        None,
        "Let the metric get worse by no more than this share, such as 1%: of schemes that round activations, with the "
        "fewest layers in float; of weights alone, by the cheapest recipe; of lengths, by the cheapest that are found.",
        parse=between(0, 0.99),
        is_share=True,
    )
    max_kl: float | None = setting(
        None, "The same for the metric kl, which it implies: nats per token, such as 0.02.", parse=between(0, 100)
    )
    metric: str | Callable[[Any], float] | None = setting(  # noqa: RUF009
        None,
        "A task of the catalogue, perplexity, kl or embeddings on a text, or module:function of a session (in Python "
        "the function itself); by default the cosine of the outputs against float32.",
        or_function=True,
    )
    text: str | None = setting(None, "Text for perplexity, kl and embeddings; by default that of the calibration.")
    window: int | None = setting(
        None,
        "Tokens of the text that the model reads at once; 512 by default, for embeddings 256 of a line.",
        parse=least(2),
    )
    stride: int | None = setting(
        None,
        "Tokens from one window to the next; those that two share are context alone in the second. A whole window by "
        "default.",
        parse=least(1),
    )
    tokens: int | None = setting(None, "Tokens of the text, from its beginning; all by default.", parse=least(2))


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How weights are rounded."""

    method: str | None = setting(
        None,
        "rtn rounds each weight to the nearest number, search the same with scales that cost products least on "
        "calibration data; gptq rounds the inputs of a weight one after the other, the next making up for what "
        "rounding the last one cost; qronos does it towards what the product gave before those ahead of it were "
        "rounded; signround learns by descent which way each weight goes; hqq fits zero points to the weights alone. "
        "Two train what the others rounded (the default, if none is named), and need torch: signround-blocks the "
        "rounding of all weights of a layer on what the layer makes, dwq scales on the outputs of the whole model. Of "
        "several, with commas, each weight gets the best. By default, where data is given, qronos for weights alone, "
        "or gptq where they are rounded at once; gptq for int8-static, which has that and rtn.",
        choices=("rtn", "search", "hqq", "gptq", "qronos", "signround", *TRAINED),
        several=True,
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """How methods train that do it by gradients."""

    steps: int | None = setting(
        None,
        "Steps that dwq, and signround-blocks with each block, train for, of one batch of data each; by default 200.",
        parse=least(1),
    )
    learning_rate: float | None = setting(
        None,
        "By which share dwq moves scales in its first step, such as 0.001; by default 0.004. It falls to 0.",
        parse=between(0, 1),
    )


@dataclasses.dataclass(frozen=True)
class Compensating:
    """What is added to products with rounded weights."""

    rank: int = setting(
        0,
        "Add a product of this rank to each product with a rounded weight, such as 16, which gives back most of what "
        "rounding took: as calibration data weighs it, else the leading part of the error. 0 adds none, and nothing is "
        "added where that would be as large as the weight, or does not help on data kept apart.",
        parse=least(0),
        per_node=True,
    )


@dataclasses.dataclass(frozen=True)
class Order:
    """In which order weights change."""

    sequential: bool = setting(
        True,
        "Let obs, and methods that round by data, change the weights of each layer for what the layers before it make "
        "by now; at once for what they make in the float model.",
        option="--sequential/--at-once",
    )


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Weights of several widths."""

    budget: str | None = setting(
        None,
        "Give each weight as many bits as it is worth: so that the weights of the model take at most 300MB together, "
        "those that are rounded 3.5bits each, scales counted, or their products 12ms for one row of each. Needs "
        "calibration data.",
        parse=written_budget,
        expected=BUDGET,
    )
    search_time: str | None = setting(
        None,
        "After how long, such as 30m, the search within a bound tries nothing more and takes the best it has; what it "
        "has begun it ends. Without a bound, after how long signround-blocks, and dwq, train no more.",
        parse=written_time,
        expected=TIME,
    )


@dataclasses.dataclass(frozen=True)
class Transforming:
    """What is done to weights before they are rounded."""

    transform: str | None = setting(
        None,
        "Change the float model into an equal one that rounds better. Three give each input of products a scale that "
        "makes rounding lose less on calibration data, where what makes the input can divide by it: awq by one "
        "exponent of the sizes of inputs, smoothquant by the largest magnitudes of inputs and weights, teq by descent, "
        "scale by scale. hadamard, without data, turns the channels between the layers of a transformer, so that "
        "outliers of one are spread over all; it is the one that int8-dynamic takes.",
        choices=("awq", "smoothquant", "teq", ROTATION),
    )


@dataclasses.dataclass(frozen=True)
class Int8Weights:
    """Weights beside activations of int8."""

    reduce_range: bool | None = setting(
        None,
        "Weights of 7 bits, for CPUs whose products of uint8 and int8 saturate; by default the target is asked.",
        option="--reduce-range/--full-range",
    )
    target: str = setting(
        "this",
        "CPUs that int8 weights are made for: this machine's, or any, which takes 7 bits.",
        choices=("this", "any"),
    )


@dataclasses.dataclass(frozen=True)
class Int8Static:
    """int8 with scales from a calibration."""

    activation_type: str = setting(
        "uint8", "uint8 or int8, which ONNX Runtime computes in float on x86.", choices=("uint8", "int8")
    )
    equalize: bool = setting(
        False, "Even out the channels of neighbouring layers first.", option="--equalize/--no-equalize"
    )
    correct_bias: bool = setting(
        True, "Take the mean error of rounding out of the biases.", option="--correct-bias/--no-correct-bias"
    )
    only_if_faster: bool = setting(
        False,
        "Keep layers in float that this machine runs slower in int8, and give no model that is not faster than "
        "float32.",
        option="--only-if-faster/--always",
    )


@dataclasses.dataclass(frozen=True)
class Floats:
    """Weights and activations of floating-point numbers of few bits."""

    weight_format: str | None = setting(
        None,
        "e4m3fn (or e4m3), e5m2, e3m4, e3m2, e2m3 or e2m1; by default the scheme's.",
        choices=WEIGHT_FORMATS,
        aliases=FORMAT_ALIASES,
        per_node=True,
    )
    activation_format: str | None = setting(
        None,
        "e4m3fn (or e4m3), e5m2 or e3m4; by default the scheme's.",
        choices=ACTIVATION_FORMATS,
        aliases=FORMAT_ALIASES,
        per_node=True,
    )
    coverage: str = setting(
        "standard",
        "standard is what Conv, Gemm and MatMul read, extended also what Add and Mul of two tensors, "
        "LayerNormalization and BatchNormalization read, and the tables of embeddings.",
        choices=("standard", "extended"),
    )
    first_and_last: bool | None = setting(
        None,
        "Round what the first and the last products read, too; by default in models without Conv.",
        option="--first-and-last/--no-first-and-last",
    )
