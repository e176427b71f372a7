"""What XNNPACK and LiteRT do for an operation on one core: how many tiles, rows, taps and bytes.

The predictor is a kernel model in the manner of nn-Meter (Zhang et al., MobiSys 2021), linear: an operation's time is
the sum of its terms, each a count that follows from the shapes alone times nanoseconds that `calibrate` fits. The
counts are XNNPACK's loops (https://github.com/google/XNNPACK, src/operators and src/operator-run.c): a convolution runs
tiles of ``rows x columns`` outputs over its depth in steps of ``depth``, a whole tile also where less is left; one of
more than one tap goes through an indirection buffer, tap by tap; a depthwise one runs a kernel for 3, 9 or 25 taps a
pixel over tiles of channels, and one of more taps runs as slowly as a convolution in groups of one channel. What the
delegate does not take runs in LiteRT's own kernels, and cuts the network into parts.

A term is ``KERNEL_COUNT``. Kernels: ``product`` a 1x1 convolution, ``conv`` one of more taps or strides, ``vector``
either at one pixel, and dense layers; ``depth3``, ``depth9``, ``depth25`` by taps, ``group`` beyond; ``spread`` one row
with all rows, ``sum`` and ``product_of_two`` of equal shapes; ``table`` activations; ``peak`` and ``average`` pooling.
Counts: ``op`` operations, ``row`` rows of tiles or of pixels, ``block`` tiles, ``tap`` tiles times taps, ``step`` tiles
times taps times depth, ``strip`` and ``tile`` vectors of channels, ``visit`` elements times taps, ``far_byte`` bytes
beyond the first cache. In a profile the type of number stands before and ``_ns`` behind: ``int8_conv_step_ns``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from kasmina_edge.hardware_simulator.workload import OpWork, Shape, Workload

Terms = dict[str, float]
CALL, PARTITION, FED_BYTE = "call", "partition", "fed_byte"
"""Of a network: one inference, one part that the delegate takes, bytes that go in and out."""
_NOT_DELEGATED = {
    "int8": frozenset({"average_pool_2d", "softmax", "hard_swish", "resize_nearest_neighbor", "batch_matmul", "gather",
                       "argmax", "reduce_max", "lstm", "squared_difference", "split"}),
    "float32": frozenset({"resize_nearest_neighbor", "gather", "argmax", "reduce_max", "lstm", "split"}),
}  # fmt: skip
_SUMMED = frozenset({"add", "sub", "mul", "div", "maximum", "minimum", "squared_difference"})
_MULTIPLIED = frozenset({"conv_2d", "depthwise_conv_2d", "fully_connected", "transpose_conv"})
_LOOKED_UP = frozenset({
    "logistic", "tanh", "relu", "relu6", "leaky_relu", "prelu", "exp", "log", "rsqrt", "sqrt", "square", "abs", "neg",
    "quantize", "dequantize",
})  # fmt: skip
_NEAR_BYTES = 32 * 1024  # what a first cache holds
_OVERHEAD = ("call", "partition", "op", "row", "pixel", "block")


@dataclass(frozen=True)
class Tiles:
    """The shape of XNNPACK's tiles on a processor.

    Attributes:
        rows: Outputs pixels of a tile of a matrix product; ``columns`` its output channels.
        depth: Input channels that are taken at a time.
        channels: Channels of a tile of a depthwise kernel.
    """

    rows: int
    columns: int
    depth: int
    channels: int


TILES: dict[str, tuple[Tiles, ...]] = {
    "int8": (
        Tiles(7, 16, 8, 32),  # AVX512 with VNNI
        Tiles(7, 16, 8, 16),
        Tiles(4, 16, 8, 32),  # AVX512 without
        Tiles(5, 8, 8, 16),  # AVX-VNNI
        Tiles(3, 8, 8, 16),  # AVX2
        Tiles(4, 16, 4, 16),  # Arm dot product
        Tiles(4, 8, 8, 16),  # Arm i8mm, or NEON multiply-accumulate
        Tiles(2, 8, 8, 16),
    ),
    "float32": (
        Tiles(7, 32, 1, 32),
        Tiles(7, 16, 1, 16),  # AVX512
        Tiles(5, 16, 1, 16),  # AVX2 with FMA
        Tiles(4, 16, 1, 8),
        Tiles(6, 8, 1, 8),  # Arm
        Tiles(4, 8, 1, 4),
    ),
}
"""Shapes that calibration tries, by type of number; the one that explains this machine best is kept."""


def family(op: OpWork) -> str:
    """Which kernels compute it: ``int8`` or ``float32``."""
    return "int8" if op.dtype in ("int8", "uint8", "int16", "int4") else "float32"


def delegated(op: OpWork) -> bool:
    """Whether LiteRT 2.3's XNNPACK delegate takes it (seen operator by operator; a test looks again)."""
    return op.kind not in _NOT_DELEGATED[family(op)]


def fused(workload: Workload) -> frozenset[int]:
    """Places of operations that XNNPACK runs within a neighbour, and that cost nothing of their own.

    A pad that only a convolution reads becomes its border; a clamp that alone reads a sum, a product or a convolution
    becomes its limits (XNNPACK, src/subgraph.c, xnn_subgraph_fusion). Without lives of tensors nothing is known.
    """
    ops, found = workload.ops, set()
    for tensor in workload.tensors:
        if not 0 <= tensor.first < len(ops) or len(tensor.readers) != 1 or tensor.last >= len(ops):
            continue
        writer, reader = ops[tensor.first].kind, ops[tensor.readers[0]].kind
        if writer == "pad" and reader in ("conv_2d", "depthwise_conv_2d"):
            found.add(tensor.first)
        elif reader in ("relu", "relu6") and (writer in _SUMMED or writer in _MULTIPLIED):
            found.add(tensor.readers[0])
    return frozenset(found)


def partitions(ops: tuple[OpWork, ...]) -> int:
    """How many parts the delegate's operations form."""
    taken = [delegated(op) for op in ops]
    return sum(now and not before for now, before in zip(taken, [False, *taken], strict=False))


def bound_of(term: str) -> str:
    """What limits the time that a term stands for: ``compute``, ``memory`` or ``overhead``."""
    last = term.rsplit("_", 1)[-1]
    return "memory" if last == "byte" else "overhead" if last in _OVERHEAD else "compute"


@lru_cache(maxsize=65536)
def terms_of(op: OpWork, tiles: Tiles) -> tuple[tuple[str, float], ...]:
    """The counts of one operation by term, without the type of number; times nanoseconds a count it is its time."""
    found = _COUNTS.get(op.kind, _summed if op.kind in _SUMMED else _looked_up if op.kind in _LOOKED_UP else _moved)
    return tuple((name, count) for name, count in found(op, tiles).items() if count)


def _up(count: int, tile: int) -> int:
    return -(-count // tile)


def _image(shape: Shape) -> tuple[int, int, int]:
    """Height, width and channels, whatever the number of axes."""
    whole = (1, 1, 1, *shape)[-3:] if len(shape) < 3 else shape[-3:]
    return whole[0], whole[1], whole[2]


def _conv(op: OpWork, tiles: Tiles) -> Terms:
    out = op.outputs[0]
    filters, kh, kw, depth = op.weights if len(op.weights) == 4 else (out[-1], 1, 1, op.inputs[0][-1])
    taps, groups = kh * kw, max(1, op.groups)
    pixels = math.prod(out[:-1])
    columns, steps = groups * _up(filters // groups, tiles.columns), _up(depth, tiles.depth)
    far = {"far_byte": _far(op), "weight_byte": float(op.constant_bytes)}
    if pixels == 1:
        return {"vector_op": 1.0, "vector_block": columns, "vector_step": columns * taps * steps, **far}
    blocks = _up(pixels, tiles.rows) * columns
    if taps == 1 and op.stride == (1, 1):
        return {"product_op": 1.0, "product_row": _up(pixels, tiles.rows), "product_block": blocks,
                "product_step": blocks * steps, **far}  # fmt: skip
    return {"conv_op": 1.0, "conv_row": _up(pixels, tiles.rows), "conv_block": blocks, "conv_tap": blocks * taps,
            "conv_step": blocks * taps * steps, **far}  # fmt: skip


def _transpose_conv(op: OpWork, tiles: Tiles) -> Terms:
    """Runs as one small convolution for each phase of the stride: each output sees its share of the taps."""
    filters, kh, kw, depth = op.weights
    phases = op.stride[0] * op.stride[1]
    blocks = _up(math.prod(op.outputs[0][:-1]), tiles.rows) * _up(filters, tiles.columns)
    taps = _up(kh * kw, phases)
    return {"conv_op": float(phases), "conv_block": blocks, "conv_tap": blocks * taps,
            "conv_step": blocks * taps * _up(depth, tiles.depth), "far_byte": _far(op)}  # fmt: skip


def _dense(op: OpWork, tiles: Tiles) -> Terms:
    units, depth = op.weights if len(op.weights) == 2 else (op.outputs[0][-1], op.inputs[0][-1])
    rows = max(1, op.macs // max(1, units * depth))
    columns, steps = _up(units, tiles.columns), _up(depth, tiles.depth)
    far = {"weight_byte": float(op.constant_bytes)}
    if rows == 1:
        return {"vector_op": 1.0, "vector_block": columns, "vector_step": columns * steps, **far}
    blocks = _up(rows, tiles.rows) * columns
    return {"product_op": 1.0, "product_row": _up(rows, tiles.rows), "product_block": blocks,
            "product_step": blocks * steps, **far}  # fmt: skip


def _depthwise(op: OpWork, tiles: Tiles) -> Terms:
    height, width, channels = _image(op.outputs[0])
    taps, pixels = math.prod(op.weights[1:3]), height * width
    groups = op.inputs[0][-1]
    if groups != channels:  # several filters a channel: a convolution in groups
        blocks = groups * _up(pixels, tiles.rows) * _up(channels // groups, tiles.columns)
        return {"conv_op": 1.0, "conv_row": float(_up(pixels, tiles.rows)), "conv_block": float(blocks),
                "conv_tap": float(blocks * taps), "conv_step": float(blocks * taps)}  # fmt: skip
    if taps > 25:
        blocks = channels * _up(pixels, tiles.rows)
        far = blocks * taps if op.input_bytes > _NEAR_BYTES else 0
        return {"group_op": 1.0, "group_block": float(blocks), "group_tap": float(blocks * taps),
                "group_far_tap": float(far)}  # fmt: skip
    kernel = "depth3" if taps <= 3 else "depth9" if taps <= 9 else "depth25"
    return {f"{kernel}_op": 1.0, f"{kernel}_row": float(height), f"{kernel}_pixel": float(pixels),
            f"{kernel}_tile": float(pixels * _up(channels, tiles.channels)), "far_byte": _far(op)}  # fmt: skip


def _summed(op: OpWork, tiles: Tiles) -> Terms:
    out, least = op.outputs[0], min(op.inputs, key=math.prod, default=())
    elements = math.prod(out)
    if len(op.inputs) > 1 and 1 < math.prod(least) < elements:  # one row again and again
        rows, steps = elements / out[-1], out[-1] // 32 + _up(out[-1] % 32, 8)  # whole vectors, then what is left
        return {"spread_op": 1.0, "spread_row": rows, "spread_tile": rows * steps, "spread_element": float(elements),
                "far_byte": _far(op)}  # fmt: skip
    name = "product" if op.kind in ("mul", "div") else "sum"
    return {f"{name}_of_two_op": 1.0, f"{name}_element": float(elements), "far_byte": _far(op)}


def _looked_up(op: OpWork, tiles: Tiles) -> Terms:
    return {"table_op": 1.0, "table_element": float(op.output_elements), "far_byte": _far(op)}


def _native(name: str) -> Callable[[OpWork, Tiles], Terms]:
    return lambda op, tiles: {f"{name}_op": 1.0, f"{name}_element": float(op.output_elements)}


def _mean(op: OpWork, tiles: Tiles) -> Terms:
    height, width, channels = _image(op.inputs[0])
    pixels = height * width
    return {"mean_op": 1.0, "mean_row": float(_up(pixels, 7)), "mean_strip": float(_up(pixels, 7) * _up(channels, 16)),
            "mean_element": float(channels), "mean_byte": float(op.input_bytes)}  # fmt: skip


def _pool(op: OpWork, tiles: Tiles) -> Terms:
    height, width, channels = _image(op.outputs[0])
    pixels, taps = height * width, _window(op)
    name = "peak" if op.kind == "max_pool_2d" else "average"
    strips = pixels * _up(channels, 16)
    return {f"{name}_op": 1.0, f"{name}_pixel": float(pixels), f"{name}_strip": float(strips),
            f"{name}_tap": float(strips * taps), f"{name}_element": float(pixels * channels),
            f"{name}_visit": float(pixels * channels * taps)}  # fmt: skip


def _window(op: OpWork) -> int:
    """Pixels of a pooling window, as far as shapes tell: with padding and a stride of one they do not, and it is 3."""
    (height, width, _), (out_height, out_width, _) = _image(op.inputs[0]), _image(op.outputs[0])
    found = 1
    for size, out, stride in ((height, out_height, op.stride[0]), (width, out_width, op.stride[1])):
        plain = 3 if stride == 1 and size == out > 1 else stride
        found *= min(size, max(plain, size - stride * out + 1))
    return found


def _concatenation(op: OpWork, tiles: Tiles) -> Terms:
    rows = math.prod(op.outputs[0][:-1]) * len(op.inputs)
    return {"join_op": float(len(op.inputs)), "join_row": float(rows), "join_byte": float(op.output_bytes)}


def _pad(op: OpWork, tiles: Tiles) -> Terms:
    height, width, _ = _image(op.outputs[0])
    return {"pad_op": 1.0, "pad_row": float(height), "pad_pixel": float(height * width),
            "pad_byte": float(op.output_bytes)}  # fmt: skip


def _bilinear(op: OpWork, tiles: Tiles) -> Terms:
    height, width, channels = _image(op.outputs[0])
    return {"bilinear_op": 1.0, "bilinear_pixel": float(height * width),
            "bilinear_tile": float(height * width * _up(channels, 16)), "far_byte": _far(op)}  # fmt: skip


def _nearest(op: OpWork, tiles: Tiles) -> Terms:
    height, width, _ = _image(op.outputs[0])
    return {"nearest_op": 1.0, "nearest_pixel": float(height * width), "nearest_byte": float(op.output_bytes)}


def _moved(op: OpWork, tiles: Tiles) -> Terms:
    """Reshape and everything that is not known: its bytes, and the multiplications where there are some."""
    plain = {"move_op": 1.0, "move_byte": float(op.input_bytes + op.output_bytes)}
    return {**plain, "other_mac": float(op.macs)} if op.macs else plain


def _far(op: OpWork) -> float:
    """Bytes that the first cache cannot keep from one operation to the next."""
    return float(max(0, op.input_bytes + op.output_bytes - _NEAR_BYTES))


_COUNTS: dict[str, Callable[[OpWork, Tiles], Terms]] = {
    "conv_2d": _conv,
    "depthwise_conv_2d": _depthwise,
    "transpose_conv": _transpose_conv,
    "fully_connected": _dense,
    "mean": _mean,
    "sum": _mean,
    "max_pool_2d": _pool,
    "average_pool_2d": _pool,
    "concatenation": _concatenation,
    "pad": _pad,
    "resize_bilinear": _bilinear,
    "resize_nearest_neighbor": _nearest,
    "softmax": _native("softmax"),
    "hard_swish": _native("swish"),
}
