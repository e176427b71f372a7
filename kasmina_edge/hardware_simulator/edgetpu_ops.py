"""What the Edge TPU compiler maps: operations, their newest versions, and the constraints that shapes can be held to.

Two sources. **The table** is coral.ai/docs/edgetpu/models-intro/#supported-operations (the same one stands at
developer.axis.com, ARTPEC-7, supported ops). **The versions** are those of TensorFlow's kernels/register.cc of autumn
2021: it refuses exactly what compiler 16.0.384591198 was seen to refuse while parsing, CONV_2D version 6
(google-coral/edgetpu #631), TRANSPOSE_CONV 4 (#845), QUANTIZE 3 (#879), EXP 2 (libedgetpu #71). A file with one newer
operator is refused as a whole ("Didn't find op for builtin opcode"), even where the CPU would have run that operator.
What is read need not map: the table names no versions. FULLY_CONNECTED 5 came with keep_num_dims (TensorFlow commit
d2504636, which lists 5 to 9), and no public log shows one that mapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from kasmina_edge.hardware_simulator.workload import OpWork, Shape

COMPILER = "16.0.384591198"
TABLE = "coral.ai/docs/edgetpu/models-intro/#supported-operations"
INTEGERS = ("int8", "uint8")
SOFTMAX_ELEMENTS = 16_000
MEAN_PIXELS = 64 * 128
LARGEST_UPSCALE = 8
"""The compiler leaves resizes out "to avoid loss in precision" and publishes no limit: a U-Net's and a pyramid's factor
of 2 maps, DeepLab's 33 to 513 does not (google-coral/edgetpu #31). This limit lies between and is a guess."""

Check = Callable[[OpWork], str]


@dataclass(frozen=True)
class OpRule:
    """One row of the table.

    Attributes:
        kind: As in `OpWork`.
        newest: Highest operator version that compiler 16.0 parses.
        constraint: The table's words, shortened; "" where it names none.
        source: Where the constraint is written.
        checks: Each gives why an operation breaks the constraint, or "".
    """

    kind: str
    newest: int
    constraint: str = ""
    source: str = TABLE
    checks: tuple[Check, ...] = ()


def _no_activation(op: OpWork) -> str:
    return f"a fused {op.activation} (the Edge TPU takes none here)" if op.activation else ""


def _same_dilation(op: OpWork) -> str:
    high, wide = op.dilation
    return "" if high == wide else f"dilation {high} by {wide}, expected the same in both directions"


def _constant_weights(op: OpWork) -> str:
    return "" if op.weights else "its weights are computed, the Edge TPU takes constants only"


def _one_dimensional_output(op: OpWork) -> str:
    wide = [s for s in op.outputs if math.prod(s[:-1]) > 1]
    return f"output {_text(wide[0])} has more than one dimension" if wide else ""


def _one_dimensional_softmax(op: OpWork) -> str:
    shape = op.inputs[0] if op.inputs else ()
    if math.prod(shape[:-1]) > 1:
        return f"input {_text(shape)} has more than one dimension"
    if shape and shape[-1] > SOFTMAX_ELEMENTS:
        return f"{shape[-1]} elements, at most {SOFTMAX_ELEMENTS}"
    return ""


def _keeps_batch(op: OpWork) -> str:
    before = next((s[0] for s in op.inputs if len(s) > 1), 1)
    after = next((s[0] for s in op.outputs if len(s) > 1), 1)
    return "" if before == after else f"the batch axis changes from {before} to {after}"


def _reduces_in_fours(op: OpWork) -> str:
    if not op.inputs or not op.outputs or len(op.inputs[0]) < 3:
        return ""
    channels = op.inputs[0][-1]
    kept = op.outputs[0][-1:] == (channels,)
    return "" if kept or channels % 4 == 0 else f"mean over {channels} channels, expected a multiple of 4"


def _moderate_upscale(op: OpWork) -> str:
    if not op.inputs or len(op.inputs[0]) != 4 or len(op.outputs[0]) != 4:
        return ""
    for before, after in zip(op.inputs[0][1:3], op.outputs[0][1:3], strict=True):
        if before > 1 and after > LARGEST_UPSCALE * before:
            return f"{before} to {after} rows or columns, upscaling beyond {LARGEST_UPSCALE} times loses precision"
    return ""


def _plain_slope(op: OpWork) -> str:
    if math.prod(op.weights[:-1]) > 1:
        return f"slopes of shape {_text(op.weights)}, expected one a channel"
    return ""


def _unit_stride(op: OpWork) -> str:
    return "" if op.stride == (1, 1) else f"strides {op.stride}, expected 1"


_RULES = (
    OpRule("add", 3),
    OpRule("average_pool_2d", 3, "no fused activation", checks=(_no_activation,)),
    OpRule("concatenation", 3, "no fused activation; at most one constant input, all zeros, beside one other",
           checks=(_no_activation,)),
    OpRule("conv_2d", 5, "the same dilation in x and y", checks=(_constant_weights, _same_dilation)),
    OpRule("depthwise_conv_2d", 6, "the same dilation in x and y", checks=(_constant_weights, _same_dilation)),
    OpRule("expand_dims", 1),
    OpRule("fully_connected", 9, "weights in the default format; output of one dimension",
           checks=(_constant_weights, _one_dimensional_output)),
    OpRule("l2_normalization", 2),
    OpRule("logistic", 3),
    OpRule("lstm", 4, "unidirectional only"),
    OpRule("unidirectional_sequence_lstm", 3, "unidirectional only"),
    OpRule("maximum", 4),
    OpRule("max_pool_2d", 3, "no fused activation", checks=(_no_activation,)),
    OpRule("mean", 3, "not over the batch axis; over channels only in multiples of 4",
           checks=(_keeps_batch, _reduces_in_fours)),
    OpRule("minimum", 4),
    OpRule("mul", 4),
    OpRule("pack", 3, "not along the batch axis", checks=(_keeps_batch,)),
    OpRule("pad", 3, "not along the batch axis", checks=(_keeps_batch,)),
    OpRule("prelu", 1, "one slope a channel", checks=(_plain_slope,)),
    OpRule("quantize", 2, "between 8-bit types"),
    OpRule("reduce_max", 3, "not over the batch axis", checks=(_keeps_batch,)),
    OpRule("reduce_min", 3, "not over the batch axis", checks=(_keeps_batch,)),
    OpRule("relu", 3),
    OpRule("relu6", 3),
    OpRule("relu_n1_to_1", 1),
    OpRule("reshape", 1, "certain reshapes of large tensors are left out"),
    OpRule("resize_bilinear", 4, "three dimensions; large upscaling is left out for its loss of precision",
           checks=(_moderate_upscale,)),
    OpRule("resize_nearest_neighbor", 4, "three dimensions; large upscaling is left out for its loss of precision",
           checks=(_moderate_upscale,)),
    OpRule("rsqrt", 2),
    OpRule("slice", 5),
    OpRule("softmax", 3, f"one dimension, at most {SOFTMAX_ELEMENTS} elements", checks=(_one_dimensional_softmax,)),
    OpRule("space_to_depth", 2),
    OpRule("split", 4, "not along the batch axis", checks=(_keeps_batch,)),
    OpRule("squared_difference", 2),
    OpRule("squeeze", 2, "certain squeezes of large tensors are left out"),
    OpRule("strided_slice", 5, "all strides 1, no ellipsis, no new axis", checks=(_unit_stride,)),
    OpRule("sub", 5),
    OpRule("sum", 2, "not over the batch axis", checks=(_keeps_batch,)),
    OpRule("tanh", 3),
    OpRule("transpose", 5, "certain transposes are left out", checks=(_keeps_batch,)),
    OpRule("transpose_conv", 3, checks=(_constant_weights,)),
)  # fmt: skip

RULES: dict[str, OpRule] = {rule.kind: rule for rule in _RULES}
"""Every operation that maps."""

PARSED: dict[str, int] = {
    **{rule.kind: rule.newest for rule in _RULES},
    "abs": 3, "argmax": 2, "arg_min": 2, "batch_matmul": 4, "batch_to_space_nd": 3, "broadcast_to": 3, "cast": 1,
    "depth_to_space": 2, "dequantize": 4, "div": 2, "elu": 1, "exp": 1, "floor_div": 2, "gather": 5, "gather_nd": 3,
    "greater": 2, "hard_swish": 1, "leaky_relu": 2, "less": 2, "log": 1, "log_softmax": 2, "mirror_pad": 2,
    "neg": 1, "pow": 1, "reverse_v2": 3, "select": 2, "select_v2": 1, "space_to_batch_nd": 3, "split_v": 2, "sqrt": 1,
    "square": 1, "svdf": 4, "tile": 2, "topk_v2": 2, "unpack": 4, "where": 1,
}  # fmt: skip
"""Newest version that the compiler parses, of operations that run on the CPU as well (register.cc, as above)."""

UNPARSED_PREFIXES = ("stablehlo_", "builtin_", "unsorted_segment_")
UNPARSED = frozenset((
    "gelu", "dilate", "relu_0_to_1", "atan2", "sign", "bitcast", "bitwise_xor", "right_shift", "dynamic_update_slice",
    "reduce_window", "bucketize", "random_uniform", "multinomial",
))  # fmt: skip
"""Operations that came after the compiler: "Op builtin_code out of range" (google-coral/edgetpu #862)."""

INSTEAD: dict[str, str] = {
    "hard_swish": "use relu6", "gelu": "use relu6", "leaky_relu": "use prelu, or relu", "elu": "use relu6",
    "batch_matmul": "use fully connected layers with constant weights", "exp": "use logistic, or keep it at the end",
    "div": "multiply with a constant", "gather": "use slice", "argmax": "leave it to the caller",
    "dequantize": "export int8 outputs", "cast": "export int8 inputs and outputs",
    "depth_to_space": "use transpose_conv or resize_nearest_neighbor", "split_v": "use split of equal parts",
    "stablehlo_sort": "use a threshold",
}  # fmt: skip
"""What to write in place of an operation that does not map."""


def refusal(op: OpWork) -> str:
    """Why compiler 16.0 refuses the whole file because of this operation; "" where it does not."""
    newest = PARSED.get(op.kind)
    if newest is not None:
        if op.version <= newest:
            return ""
        return (
            f"{op.place or op.kind}: version {op.version}, compiler {COMPILER} reads up to {newest} and refuses the "
            "whole file"
        )
    if op.kind in UNPARSED or op.kind.startswith(UNPARSED_PREFIXES):
        return f"{op.place or op.kind}: newer than compiler {COMPILER}, which refuses the whole file"
    return ""


def obstacle(op: OpWork) -> str:
    """Why this operation cannot run on the Edge TPU, "" where it can; versions are `refusal`'s work."""
    rule = RULES.get(op.kind)
    if rule is None:
        instead = INSTEAD.get(op.kind, "")
        return "not an operation of the Edge TPU" + (f" ({instead})" if instead else "")
    for word, dtype in (("numbers", op.dtype), ("weights", op.weights_dtype)):
        if dtype and dtype not in INTEGERS:
            return f"works on {dtype} {word}, the Edge TPU takes int8 and uint8"
    for shape in (*op.inputs, *op.outputs):
        if shape and min(shape) < 1:
            return f"shape {_text(shape)} is not fixed"
        if len(shape) > 3 and math.prod(shape[:-3]) > 1:
            return f"shape {_text(shape)}: only the three innermost dimensions may be larger than 1"
    for check in rule.checks:
        why = check(op)
        if why:
            return why
    return ""


def caution(op: OpWork) -> str:
    """What is not certain about an operation that maps; "" where nothing is known against it."""
    if op.kind == "fully_connected" and op.version > 4:
        return (
            f"version {op.version} is parsed, up to {PARSED[op.kind]}; whether it maps is reported for version 4 only"
        )
    if op.kind == "mean" and op.inputs and math.prod(op.inputs[0][1:-1]) > MEAN_PIXELS:
        return "a mean over 256 x 128 pixels was left out, one over 64 x 128 was not (google-coral/edgetpu #461)"
    return ""


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "()"
