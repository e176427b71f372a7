"""ONNX operators that move numbers about: reshape, slice, pad, resize, and constants. Shapes are known here."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kasmina_trainer.export.source.onnx_step import Made, Step, Unsupported


def _reshaped(step: Step, wanted: Sequence[int]) -> Made:
    """The same numbers in another shape; a batch of one that was written into it stays open."""
    shape = step.shape(0)
    full = [n if n >= 0 else math.prod(shape) // max(1, math.prod(m for m in wanted if m >= 0)) for n in wanted]
    opens = bool(full) and bool(shape) and full[0] == shape[0] == 1
    return step.call(torch.reshape, step.value(0), (-1, *full[1:]) if opens else tuple(full))


def flatten(step: Step) -> Made:
    """Everything from an axis on in one."""
    axis = int(step.options.get("axis", 1))
    if axis == 1:
        return step.call(torch.flatten, step.value(0), 1)
    shape = step.shape(0)
    axis %= len(shape) + 1
    return step.call(torch.reshape, step.value(0), (math.prod(shape[:axis]), math.prod(shape[axis:])))


def reshape(step: Step) -> Made:
    """The same numbers in another shape."""
    wanted = step.ints(1, "shape") or []
    if not step.options.get("allowzero", 0):
        wanted = [step.shape(0)[i] if n == 0 else n for i, n in enumerate(wanted)]
    return _reshaped(step, wanted)


def squeeze(step: Step) -> Made:
    """Without axes of length 1."""
    shape = step.shape(0)
    axes = step.ints(1, "axes") or [i for i, n in enumerate(shape) if n == 1]
    gone = {a % len(shape) for a in axes}
    return _reshaped(step, [n for i, n in enumerate(shape) if i not in gone])


def unsqueeze(step: Step) -> Made:
    """With axes of length 1."""
    shape, axes = list(step.shape(0)), step.ints(1, "axes") or []
    for axis in sorted(a % (len(shape) + len(axes)) for a in axes):
        shape.insert(axis, 1)
    return _reshaped(step, shape)


def transpose(step: Step) -> Made:
    """Axes in another order."""
    order = step.options.get("perm") or list(reversed(range(step.rank(0))))
    return step.call(torch.permute, step.value(0), tuple(order))


def concat(step: Step) -> Made:
    """Tensors behind each other."""
    values = [step.value(i) for i in range(len(step.inputs))]
    return step.call(torch.cat, values, int(step.options["axis"]))


def split(step: Step) -> Made:
    """A tensor in parts."""
    axis = int(step.options.get("axis", 0))
    length = step.shape(0)[axis]
    sizes = step.ints(1, "split")
    if sizes is None:
        each = -(-length // step.outputs)
        sizes = [min(each, length - i * each) for i in range(step.outputs)]
    parts = step.call(torch.split, step.value(0), sizes, axis)[0]
    return [step.build.call(operator.getitem, parts, i, origin=step.origin) for i in range(step.outputs)]


def cut(step: Step) -> Made:
    """A part of a tensor."""
    starts, ends = step.ints(1, "starts") or [], step.ints(2, "ends") or []
    axes = step.ints(3, "axes") or list(range(len(starts)))
    steps = step.ints(4, "steps") or [1] * len(starts)
    value: Any = step.value(0)
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        if stride < 1:
            raise Unsupported(f"walks backwards (step {stride})", "Turn the weights around instead.")
        length = step.shape(0)[axis]
        first, last = (min(max(n + length if n < 0 else n, 0), length) for n in (start, end))
        value = step.call(torch.ops.aten.slice.Tensor, value, axis % step.rank(0), first, last, stride)[0]
    return [value]


def pad(step: Step) -> Made:
    """A border of zeros, of copies or of a mirror."""
    mode = step.text("mode", "constant")
    pads = step.ints(1, "pads") or []
    if step.has(3):
        raise Unsupported("pads by chosen axes", "Give a padding for every axis.")
    axes = len(pads) // 2
    flat = [n for i in reversed(range(axes)) for n in (pads[i], pads[i + axes])]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    if mode == "constant":
        value = float(step.options.get("value", step.array(2).item() if step.has(2) else 0.0))
        return step.call(F.pad, step.value(0), flat, "constant", value)
    if mode not in ("reflect", "edge"):
        raise Unsupported(f"pads with mode {mode}")
    return step.call(F.pad, step.value(0), flat, "replicate" if mode == "edge" else "reflect")


def resize(step: Step) -> Made:
    """Nearest neighbours by whole factors, or bilinear."""
    mode = step.text("mode", "nearest")
    how = step.text("coordinate_transformation_mode", "half_pixel")
    before = step.shape(0)
    scales_at = 1 if step.opset < 11 else 2
    if step.has(3) and step.array(3).size:
        after = [int(n) for n in step.array(3)]
    else:
        scales = step.array(scales_at).ravel() if step.has(scales_at) else np.asarray(step.options["scales"])
        after = [math.floor(n * s) for n, s in zip(before, scales, strict=True)]
    if list(before[:2]) != after[:2]:
        raise Unsupported("changes batch or channels")
    if mode == "nearest":
        whole = all(b % a == 0 for a, b in zip(before[2:], after[2:], strict=True))
        if not whole:
            raise Unsupported(f"goes from {before[2:]} to {tuple(after[2:])}, nearest neighbours need whole factors")
        return step.call(F.interpolate, step.value(0), tuple(after[2:]), mode="nearest")
    if mode == "linear" and len(before) == 4 and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        corners = how == "align_corners"
        return step.call(F.interpolate, step.value(0), tuple(after[2:]), mode="bilinear", align_corners=corners)
    raise Unsupported(f"has mode {mode} with {how}", "Use nearest neighbours with whole factors, or bilinear.")


def depth_to_space(step: Step) -> Made:
    """Channels moved into space."""
    n, c, h, w = step.shape(0)
    block = int(step.options["blocksize"])
    if step.text("mode", "DCR") == "CRD":
        return step.call(torch.pixel_shuffle, step.value(0), block)
    split = step.call(torch.reshape, step.value(0), (n, block, block, c // block**2, h, w))[0]
    moved = step.call(torch.permute, split, (0, 3, 4, 1, 5, 2))[0]
    return step.call(torch.reshape, moved, (n, c // block**2, h * block, w * block))


def gather(step: Step) -> Made:
    """Fixed places of one axis."""
    axis = int(step.options.get("axis", 0))
    index = step.array(1)
    length = step.shape(0)[axis]
    if index.ndim > 1:
        raise Unsupported("picks with an index of several axes")
    places = [int(i) % length for i in index.ravel()]
    if not index.ndim:
        return step.call(torch.select, step.value(0), axis, places[0])
    if places == list(range(places[0], places[0] + len(places))):
        return step.call(torch.ops.aten.slice.Tensor, step.value(0), axis, places[0], places[-1] + 1, 1)
    parts = [step.call(torch.ops.aten.slice.Tensor, step.value(0), axis, i, i + 1, 1)[0] for i in places]
    return step.call(torch.cat, parts, axis)


def same(step: Step) -> Made:
    """What goes in."""
    return [step.fixed[step.inputs[0]] if step.inputs[0] in step.fixed else step.value(0)]


def constant(step: Step) -> Made:
    """A tensor that the file holds."""
    from onnx import numpy_helper

    if "value" in step.options:
        return [np.array(numpy_helper.to_array(step.options["value"]))]
    kind, value = next(iter(step.options.items()))
    return [np.asarray(value, np.int64 if "int" in kind else np.float32)]
