"""Arithmetic on shapes: small constants that a node gives whatever is fed, as ONNX Runtime folds them when it loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.hardware_simulator.onnx_graph import Node, Shape
from kasmina_edge.hardware_simulator.onnx_shapes import axes_of

Array = npt.NDArray[Any]
Numbers = tuple[float, ...]
MOST = 1024
"""Numbers of a constant that is worked out; shapes are shorter."""


def folded(node: Node, operands: Sequence[tuple[Shape, Numbers | None]]) -> tuple[Shape, Numbers] | None:
    """What a node gives where it can be told now: shape and numbers; None where it cannot, or they are many.

    Args:
        node: The operation.
        operands: Shape, and numbers where they are known.
    """
    if node.kind == "Shape":
        shape = operands[0][0]
        start, end = node.ints.get("start", (0,))[0], node.ints.get("end", (len(shape),))[0]
        found = shape[start:end]
        return (len(found),), tuple(map(float, found))
    if node.kind == "Size":
        return (), (float(np.prod(operands[0][0], dtype=np.float64)),)
    rule = _RULES.get(node.kind)
    if rule is None or not operands:
        return None
    arrays = []
    for shape, numbers in operands:
        if numbers is None or len(numbers) > MOST or len(numbers) != math.prod(shape):
            return None
        arrays.append(np.asarray(numbers, np.float64).reshape(shape))
    try:
        with np.errstate(all="ignore"):
            answer = np.asarray(rule(node, arrays), np.float64)
    except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError, MemoryError):
        return None
    return None if answer.size > MOST else (answer.shape, tuple(answer.ravel().tolist()))


def _gather(node: Node, a: list[Array]) -> Array:
    return np.take(a[0], a[1].astype(np.int64), axis=node.ints.get("axis", (0,))[0])


def _slice(node: Node, a: list[Array]) -> Array:
    steps = a[4] if len(a) > 4 else np.ones(a[1].size)
    axes = a[3] if len(a) > 3 else np.arange(a[1].size)
    cut: list[slice] = [slice(None)] * a[0].ndim
    for first, last, axis, step in zip(a[1], a[2], axes, steps, strict=True):
        cut[int(axis)] = slice(int(first), None if last < -(2**62) else int(last), int(step))
    return a[0][tuple(cut)]


def _reshape(node: Node, a: list[Array]) -> Array:
    return a[0].reshape([a[0].shape[i] if n == 0 else int(n) for i, n in enumerate(a[1])])


def _squeeze(node: Node, a: list[Array]) -> Array:
    axes = axes_of(node, [None, *(tuple(x.tolist()) for x in a[1:])], 1, a[0].ndim)
    return np.squeeze(a[0], axes)


def _unsqueeze(node: Node, a: list[Array]) -> Array:
    given = node.ints.get("axes") or tuple(int(n) for n in a[1])
    return np.expand_dims(a[0], given)


def _divided(node: Node, a: list[Array]) -> Array:
    whole = all(np.array_equal(x, np.floor(x)) for x in a)
    return np.trunc(a[0] / a[1]) if whole else a[0] / a[1]


def _filled(node: Node, a: list[Array]) -> Array:
    shape = [int(n) for n in a[0]]
    if any(n < 0 for n in shape) or float(np.prod(np.asarray(shape, np.float64))) > MOST:
        raise ValueError("too large to be a shape")
    value = node.constant.values if node.constant is not None and node.constant.values else (0.0,)
    return np.full(shape, value[0])


def _ranged(node: Node, a: list[Array]) -> Array:
    first, last, step = (float(x) for x in a)
    if not 0 <= (last - first) / step <= MOST:
        raise ValueError("too long to be a shape")
    return np.arange(first, last, step)


_RULES: dict[str, Callable[[Node, list[Array]], Array]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Div": _divided,
    "ConstantOfShape": _filled,
    "Range": _ranged,
    "Concat": lambda node, a: np.concatenate(a, axis=node.ints["axis"][0]),
    "Transpose": lambda node, a: np.transpose(a[0], node.ints.get("perm")),
    "Cast": lambda node, a: a[0],
    "Identity": lambda node, a: a[0],
    "Add": lambda node, a: a[0] + a[1],
    "Sub": lambda node, a: a[0] - a[1],
    "Mul": lambda node, a: a[0] * a[1],
    "Mod": lambda node, a: np.mod(a[0], a[1]),
    "Equal": lambda node, a: a[0] == a[1],
    "Greater": lambda node, a: a[0] > a[1],
    "Less": lambda node, a: a[0] < a[1],
    "Not": lambda node, a: a[0] == 0,
    "And": lambda node, a: (a[0] != 0) & (a[1] != 0),
    "Or": lambda node, a: (a[0] != 0) | (a[1] != 0),
    "Where": lambda node, a: np.where(a[0] != 0, a[1], a[2]),
    "Floor": lambda node, a: np.floor(a[0]),
    "Ceil": lambda node, a: np.ceil(a[0]),
    "Neg": lambda node, a: -a[0],
    "ReduceProd": lambda node, a: np.asarray(np.prod(a[0])).reshape(1),
}
