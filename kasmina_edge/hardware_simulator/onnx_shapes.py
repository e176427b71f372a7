"""Shapes that ONNX operators give, in ONNX's own layout (channels first), by the operators' documents (onnx.ai/onnx).

Those that our exporter and common models use; for all others the file's own ``value_info`` has to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kasmina_edge.hardware_simulator.onnx_graph import Node, Shape

Numbers = tuple[float, ...] | None
Rule = Callable[[Node, Sequence[Shape], Sequence[Numbers]], "list[Shape] | None"]

_BROADCAST_WORDS = """
Add Sub Mul Div Max Min Pow Where Equal Greater Less GreaterOrEqual LessOrEqual And Or Xor Mod BitShift PRelu
QLinearAdd QLinearMul
"""
BROADCAST = frozenset(_BROADCAST_WORDS.split())
"""Operators whose operands are stretched to one shape."""
_SAME_WORDS = """
Relu Clip Sigmoid Tanh LeakyRelu HardSwish HardSigmoid Elu Selu Gelu Erf Exp Log Sqrt Reciprocal Abs Neg Floor Ceil
Round Sign Sin Cos Not Softmax LogSoftmax Softplus Softsign Mish Cast Identity Dropout BatchNormalization
InstanceNormalization LayerNormalization GroupNormalization RMSNormalization SimplifiedLayerNormalization
QuantizeLinear DequantizeLinear CumSum LpNormalization LRN ThresholdedRelu Celu IsNaN Trilu QuickGelu FastGelu
BiasGelu SkipLayerNormalization RotaryEmbedding ScatterND ScatterElements QLinearSigmoid QLinearLeakyRelu
DynamicQuantizeLinear
"""
SAME = frozenset(_SAME_WORDS.split())
"""Operators whose outputs have the first operand's shape."""
_REDUCES_WORDS = """
ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare
"""
_REDUCES = frozenset(_REDUCES_WORDS.split())


def output_shapes(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    """Shapes of a node's outputs.

    Args:
        node: The operation.
        shapes: Of its inputs; () where one is absent.
        values: Numbers of inputs that are known; None elsewhere.

    Returns:
        One shape an output as far as the rule goes; None where there is no rule, or it lacks a number.
    """
    rule = _RULES.get(node.kind)
    if rule is None:
        if node.kind in BROADCAST:
            rule = _broadcast
        elif node.kind in SAME:
            return [shapes[0]] * max(1, len(node.outputs)) if shapes else None
        elif node.kind in _REDUCES:
            rule = _reduce
        else:
            return None
    try:
        return rule(node, shapes, values)
    except (IndexError, KeyError, ZeroDivisionError, ValueError, OverflowError):
        return None


def broadcast(*shapes: Shape) -> Shape:
    """NumPy's rule.

    Raises:
        ValueError: The shapes do not go together.
    """
    rank = max(map(len, shapes))
    wide = [(1,) * (rank - len(s)) + s for s in shapes]
    found = []
    for axis in zip(*wide, strict=True):
        lengths = {n for n in axis if n != 1}
        if len(lengths) > 1:
            raise ValueError(f"shapes {shapes} do not go together")
        found.append(lengths.pop() if lengths else 1)
    return tuple(found)


def window(node: Node, sizes: Shape, kernel: Shape) -> Shape:
    """Lengths after a convolution or pool over ``sizes``."""
    rank = len(sizes)
    stride = node.ints.get("strides", (1,) * rank)
    dilation = node.ints.get("dilations", (1,) * rank)
    pads = node.ints.get("pads", (0,) * (2 * rank))
    auto, up = node.texts.get("auto_pad", "NOTSET"), node.ints.get("ceil_mode", (0,))[0]
    found = []
    for i, n in enumerate(sizes):
        span = (kernel[i] - 1) * dilation[i] + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            found.append(-(-n // stride[i]))
            continue
        room = n - span + (0 if auto == "VALID" else pads[i] + pads[rank + i])
        found.append((-(-room // stride[i]) if up else room // stride[i]) + 1)
    return tuple(found)


def axes_of(node: Node, values: Sequence[Numbers], place: int, rank: int) -> tuple[int, ...] | None:
    """The attribute ``axes``, or the input that took its place; None where there is neither."""
    given: Numbers = node.ints.get("axes")
    if given is None and len(node.inputs) > place and node.inputs[place]:
        given = values[place]
        if given is None:
            raise ValueError("axes are not known")
    return None if given is None else tuple(int(a) % max(rank, 1) for a in given)


def _broadcast(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    if node.kind in ("QLinearAdd", "QLinearMul"):
        return [broadcast(shapes[0], shapes[3])]
    return [broadcast(*shapes)]


def _conv(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x, w = shapes[0], shapes[3 if node.kind == "QLinearConv" else 1]
    return [(x[0], w[0], *window(node, x[2:], w[2:]))]


def _conv_transpose(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x, w = shapes[0], shapes[1]
    rank = len(x) - 2
    groups = node.ints.get("group", (1,))[0]
    stride, dilation = node.ints.get("strides", (1,) * rank), node.ints.get("dilations", (1,) * rank)
    pads, more = node.ints.get("pads", (0,) * (2 * rank)), node.ints.get("output_padding", (0,) * rank)
    told = node.ints.get("output_shape")
    auto = node.texts.get("auto_pad", "NOTSET")
    sizes = tuple(
        x[2 + i] * stride[i]
        if auto in ("SAME_UPPER", "SAME_LOWER")
        else stride[i] * (x[2 + i] - 1) + more[i] + (w[2 + i] - 1) * dilation[i] + 1 - pads[i] - pads[rank + i]
        for i in range(rank)
    )
    return [(x[0], w[1] * groups, *(told or sizes))]


def _pool(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    return [(*x[:2], *window(node, x[2:], node.ints["kernel_shape"]))] * max(1, len(node.outputs))


def _global_pool(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    return [(*shapes[0][:2], *(1 for _ in shapes[0][2:]))]


def _gemm(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    a, b = shapes[0], shapes[3 if node.kind == "QGemm" else 1]
    return [(a[1 if node.ints.get("transA", (0,))[0] else 0], b[0 if node.ints.get("transB", (0,))[0] else 1])]


def _matmul(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    a, b = shapes[0], shapes[3 if node.kind == "QLinearMatMul" else 1]
    if not a or not b:
        return None
    left, right = ((1, *a) if len(a) == 1 else a), ((*b, 1) if len(b) == 1 else b)
    found = (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])
    if len(a) == 1:
        found = (*found[:-2], found[-1])
    return [found[:-1] if len(b) == 1 else found]


def _matmul_nbits(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    return [(*shapes[0][:-1], node.ints["N"][0])]


def _reduce(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    axes = axes_of(node, values, 1, len(x))
    if not axes:
        if node.ints.get("noop_with_empty_axes", (0,))[0]:
            return [x]
        axes = tuple(range(len(x)))
    if node.ints.get("keepdims", (1,))[0]:
        return [tuple(1 if i in axes else n for i, n in enumerate(x))]
    return [tuple(n for i, n in enumerate(x) if i not in axes)]


def _arg(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    axis = node.ints.get("axis", (0,))[0] % len(x)
    keep = node.ints.get("keepdims", (1,))[0]
    return [tuple(1 if i == axis else n for i, n in enumerate(x) if keep or i != axis)]


def _concat(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    axis = node.ints["axis"][0] % len(shapes[0])
    total = sum(s[axis] for s in shapes)
    return [(*shapes[0][:axis], total, *shapes[0][axis + 1 :])]


def _split(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x, count = shapes[0], len(node.outputs)
    axis = node.ints.get("axis", (0,))[0] % len(x)
    sizes: Numbers = node.ints.get("split") or (values[1] if len(values) > 1 else None)
    if sizes is None:
        each = -(-x[axis] // count)
        sizes = tuple(min(each, x[axis] - i * each) for i in range(count))
    return [(*x[:axis], int(n), *x[axis + 1 :]) for n in sizes]


def _slice(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    starts: Numbers = node.ints.get("starts") or (values[1] if len(values) > 1 else None)
    ends: Numbers = node.ints.get("ends") or (values[2] if len(values) > 2 else None)
    if starts is None or ends is None:
        return None
    axes = axes_of(node, values, 3, len(x)) or tuple(range(len(starts)))
    steps = values[4] if len(values) > 4 and node.inputs[4] else (1,) * len(starts)
    if steps is None:
        return None
    found = list(x)
    for axis, first, last, step in zip(axes, starts, ends, steps, strict=True):
        found[axis] = len(range(*slice(int(first), int(last), int(step)).indices(x[axis])))
    return [tuple(found)]


def _pad(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    pads: Numbers = node.ints.get("pads") or (values[1] if len(values) > 1 else None)
    if pads is None:
        return None
    axes = axes_of(node, values, 3, len(x)) or tuple(range(len(x)))
    found = list(x)
    for i, axis in enumerate(axes):
        found[axis] += int(pads[i]) + int(pads[len(axes) + i])
    return [tuple(found)]


def _reshape(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    wanted: Numbers = node.ints.get("shape") or (values[1] if len(values) > 1 else None)
    if wanted is None:
        return None
    zero = node.ints.get("allowzero", (0,))[0]
    found = [x[i] if not n and not zero else int(n) for i, n in enumerate(wanted)]
    if -1 in found:
        known = math.prod(n for n in found if n != -1)
        found[found.index(-1)] = math.prod(x) // known
    return [tuple(found)]


def _flatten(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    axis = node.ints.get("axis", (1,))[0]
    axis = axis + len(x) if axis < 0 else axis
    return [(math.prod(x[:axis]), math.prod(x[axis:]))]


def _squeeze(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    axes = axes_of(node, values, 1, len(x))
    return [tuple(n for i, n in enumerate(x) if (n != 1 if axes is None else i not in axes))]


def _unsqueeze(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    given: Numbers = node.ints.get("axes") or (values[1] if len(values) > 1 else None)
    if given is None:
        return None
    rank = len(shapes[0]) + len(given)
    places, rest = {int(a) % rank for a in given}, iter(shapes[0])
    if len(places) != len(given):
        raise ValueError("an axis is given twice")
    return [tuple(1 if i in places else next(rest) for i in range(rank))]


def _transpose(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    return [tuple(x[i] for i in node.ints.get("perm", tuple(reversed(range(len(x))))))]


def _resize(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x = shapes[0]
    sizes = values[3] if len(values) > 3 and values[3] else None
    scales = (
        values[1 if node.kind == "Upsample" else 2] if len(values) > (1 if node.kind == "Upsample" else 2) else None
    )
    if sizes:
        return [tuple(map(int, sizes))]
    return [tuple(math.floor(n * s) for n, s in zip(x, scales, strict=True))] if scales else None


def _depth_to_space(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    (n, c, h, w), b = shapes[0], node.ints["blocksize"][0]
    return [(n, c // (b * b), h * b, w * b) if node.kind == "DepthToSpace" else (n, c * b * b, h // b, w // b)]


def _gather(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x, indices = shapes[0], shapes[1]
    if node.kind == "GatherElements":
        return [indices]
    axis = node.ints.get("axis", (0,))[0] % len(x)
    return [(*x[:axis], *indices, *x[axis + 1 :])]


def _recurrent(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    (steps, batch, _), hidden = shapes[0], shapes[2][-1]
    ways = shapes[1][0]
    return [(steps, ways, batch, hidden), (ways, batch, hidden), (ways, batch, hidden)][: max(1, len(node.outputs))]


def _expand(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    wanted = values[1]
    return None if wanted is None else [broadcast(shapes[0], tuple(map(int, wanted)))]


def _tile(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    times = values[1]
    return None if times is None else [tuple(n * int(t) for n, t in zip(shapes[0], times, strict=True))]


def _from_numbers(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    return None if values[0] is None else [tuple(map(int, values[0]))]


def _topk(node: Node, shapes: Sequence[Shape], values: Sequence[Numbers]) -> list[Shape] | None:
    x, count = shapes[0], values[1]
    axis = node.ints.get("axis", (-1,))[0] % len(x)
    return None if count is None else [(*x[:axis], int(count[0]), *x[axis + 1 :])] * 2


_RULES: dict[str, Rule] = {
    "Conv": _conv, "ConvInteger": _conv, "QLinearConv": _conv, "FusedConv": _conv, "ConvTranspose": _conv_transpose,
    "MaxPool": _pool, "AveragePool": _pool, "LpPool": _pool, "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool, "Gemm": _gemm, "QGemm": _gemm, "MatMul": _matmul, "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul, "MatMulNBits": _matmul_nbits, "ArgMax": _arg, "ArgMin": _arg, "Concat": _concat,
    "Split": _split, "Slice": _slice, "Pad": _pad, "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Transpose": _transpose, "Resize": _resize, "Upsample": _resize,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _depth_to_space, "Gather": _gather, "GatherElements": _gather,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "Expand": _expand, "Tile": _tile,
    "ConstantOfShape": _from_numbers, "TopK": _topk,
}  # fmt: skip
