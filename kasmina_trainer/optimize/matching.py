"""Which activation of one form is which of another.

Forms of one graph are matched by order. Others - torch against TFLite, TFLite against ONNX - fuse and split differently
and lay images out differently; they are matched by what is computed: kinds and shapes in order (Needleman and Wunsch
1970), and where several fit, by the values themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.export.alignment import best_pairs
from kasmina_trainer.optimize.forms import FOLLOWERS, MOVEMENT, Form, Step, segment, settled

Array = npt.NDArray[Any]

_TURNS: tuple[tuple[int, ...], ...] = ((0, 2, 3, 1), (0, 3, 1, 2))
_SERIES = (0, 2, 1)
_PRODUCTS = ("fully_connected", "batch_matmul", "conv_2d", "depthwise_conv_2d", "transpose_conv")
_KIND_GAIN, _VALUE_GAIN, _CERTAIN, _SURE = 1.0, 4.0, 0.99, 0.9


@dataclass(frozen=True)
class Layout:
    """How a tensor of the second form is laid out as the first form's; frames stay in front.

    Attributes:
        turn: Order of the axes, batch first; () leaves them.
        shape: The first form's shape.
    """

    turn: tuple[int, ...]
    shape: tuple[int, ...]

    def apply(self, values: Array) -> Array:
        """Values of the second form as the first has them.  # (N, ...)"""
        if self.turn:
            values = values.transpose(0, *(i + 1 for i in self.turn))
        return np.ascontiguousarray(values.reshape(len(values), *self.shape))


@dataclass(frozen=True)
class Pair:
    """One activation in both forms.

    Attributes:
        ours: Tensor of the first form.
        theirs: Tensor of the second, as its readers get it.
        step: The second form's step that computes it; None for an input.
        origin: The first form's step; None for an input.
        layout: From the second form's layout to the first's.
    """

    ours: str
    theirs: str
    step: Step | None
    origin: Step | None
    layout: Layout


@dataclass(frozen=True)
class _Unit:
    """A step with what other forms fuse into it."""

    step: Step
    output: str


def match(
    ours: Form, theirs: Form, our_values: Mapping[str, Array], their_values: Mapping[str, Array]
) -> tuple[Pair, ...]:
    """Pairs in the second form's order, inputs first.

    Raises:
        InputError: Inputs or outputs of the two forms do not correspond.
    """
    found = []
    turn = _turn(ours, theirs)
    if len(ours.inputs) != len(theirs.inputs):
        raise InputError(f"{ours.title} has {len(ours.inputs)} inputs, {theirs.title} has {len(theirs.inputs)}")
    for a, b in zip(ours.inputs, theirs.inputs, strict=True):
        a, b = settled(ours, a), settled(theirs, b)
        layout = _layout(ours.shapes[a], theirs.shapes[b], turn)
        if layout is None:
            raise InputError(f"inputs of shape {ours.shapes[a]} and {theirs.shapes[b]} do not correspond")
        found.append(Pair(a, b, None, None, layout))
    return (*found, *(_by_order(ours, theirs) or _by_content(ours, theirs, our_values, their_values)))


def output_layouts(ours: Form, theirs: Form) -> tuple[Layout, ...]:
    """Of the answers, from the second form's layout to the first's.

    Raises:
        InputError: Another number of answers, or of other shapes.
    """
    turn, found = _turn(ours, theirs), []
    if len(ours.outputs) != len(theirs.outputs):
        raise InputError(f"{ours.title} gives {len(ours.outputs)} answers, {theirs.title} gives {len(theirs.outputs)}")
    for number, (a, b) in enumerate(zip(ours.outputs, theirs.outputs, strict=True)):
        layout = _layout(ours.shapes[a], theirs.shapes[b], turn)
        if layout is None:
            raise InputError(f"answer {number}: {ours.shapes[a]} in {ours.title}, {theirs.shapes[b]} in {theirs.title}")
        found.append(layout)
    return tuple(found)


def _by_order(ours: Form, theirs: Form) -> tuple[Pair, ...]:
    """Pairs of two forms of one graph; () where they are not."""
    mine = [s for s in ours.steps if s.kind not in ("quantize", "dequantize")]
    other = [s for s in theirs.steps if s.kind not in ("quantize", "dequantize")]
    if [_signature(ours, s) for s in mine] != [_signature(theirs, s) for s in other]:
        return ()
    return tuple(
        Pair(settled(ours, a), settled(theirs, b), q, p, Layout((), ours.shapes[a]))
        for p, q in zip(mine, other, strict=True)
        for a, b in zip(p.outputs, q.outputs, strict=True)
        if not (_whole(ours, p) or _whole(theirs, q))
    )


def _whole(form: Form, step: Step) -> bool:
    """Whether a step computes nothing that rounding could touch, such as a shape."""
    return not step.inputs or not step.outputs


def _signature(form: Form, step: Step) -> tuple[Any, ...]:
    return step.kind, step.fused, tuple(form.shapes[key] for key in step.outputs)


def _by_content(
    ours: Form, theirs: Form, our_values: Mapping[str, Array], their_values: Mapping[str, Array]
) -> tuple[Pair, ...]:
    mine, other, turn = _units(ours), _units(theirs), _turn(ours, theirs)
    layouts: dict[tuple[int, int], Layout] = {}
    gains: list[list[float | None]] = []
    for i, a in enumerate(mine):
        row: list[float | None] = []
        for j, b in enumerate(other):
            key = settled(theirs, b.output)
            layout = _layout(ours.shapes[a.output], theirs.shapes[key], turn)
            alike = _likeness(our_values[a.output], layout.apply(their_values[key])) if layout is not None else 0.0
            same = _general(a.step.kind) == _general(b.step.kind)
            if layout is None or not (same or alike > _CERTAIN):
                row.append(None)
                continue
            layouts[i, j] = layout
            row.append(_KIND_GAIN * same + _VALUE_GAIN * max(0.0, alike))
        gains.append(row)
    pairs = best_pairs(gains)
    _out_of_order(gains, pairs)
    known = {mine[i].output for i in pairs}
    return tuple(
        Pair(
            mine[i].output, settled(theirs, other[j].output), other[j].step,
            _origin(ours, mine[i], other[j].step, known), layouts[i, j],
        )
        for i, j in sorted(pairs.items(), key=lambda pair: pair[1])
    )  # fmt: skip


def _origin(ours: Form, unit: _Unit, theirs: Step, known: set[str]) -> Step:
    """The unit's step; where the second form multiplies there, the one of the first that it fused into its weights."""
    if theirs.kind not in _PRODUCTS or unit.step.kind in _PRODUCTS:
        return unit.step
    steps, _ = segment(ours.steps, unit.output, (known | set(ours.inputs)) - {unit.output})
    return next((step for step in reversed(steps) if step.kind in _PRODUCTS), unit.step)


def _out_of_order(gains: Sequence[Sequence[float | None]], pairs: dict[int, int]) -> None:
    """Add pairs of what is left that are surely one: branches that do not meet may be computed in another order."""
    taken = set(pairs.values())
    left = [
        (-gain, i, j)
        for i, row in enumerate(gains)
        for j, gain in enumerate(row)
        if gain is not None and i not in pairs and j not in taken and gain > _KIND_GAIN + _VALUE_GAIN * _SURE
    ]
    for _, i, j in sorted(left):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)


def _units(form: Form) -> list[_Unit]:
    """Steps that compute, each with the output of the last follower that is its only reader."""
    found = []
    for step in form.steps:
        if step.kind in MOVEMENT or not step.inputs:
            continue
        writer = form.producer(settled_back(form, step.inputs[0]))
        if writer is not None and len(form.readers(step.inputs[0])) == 1 and _follows(step, writer):
            continue
        for output in step.outputs:
            found.append(_Unit(step, _followed(form, output)))
    return found


def settled_back(form: Form, key: str) -> str:
    """The tensor that ``key`` restates; ``key`` itself where it restates none."""
    writer = form.producer(key)
    while writer is not None and writer.kind in ("quantize", "dequantize") and writer.inputs:
        key = writer.inputs[0]
        writer = form.producer(key)
    return key


def _followed(form: Form, key: str) -> str:
    writer, readers = form.producer(key), form.readers(settled(form, key))
    while len(readers) == 1 and writer is not None and _follows(readers[0], writer) and len(readers[0].outputs) == 1:
        key = readers[0].outputs[0]
        writer, readers = readers[0], form.readers(settled(form, key))
    return key


def _follows(step: Step, writer: Step) -> bool:
    """Whether other forms fuse a step into the one before it: an activation, or the addition of a constant bias."""
    bias = step.kind == "add" and len(step.inputs) == 1 and writer.kind in _PRODUCTS
    return step.kind in FOLLOWERS or bias


def _general(kind: str) -> str:
    """Kinds that converters use for each other."""
    alike = {"depthwise_conv_2d": "conv_2d", "average_pool_2d": "mean", "batch_matmul": "fully_connected",
             "max_pool2d_with_indices": "max_pool_2d"}  # fmt: skip
    return alike.get(kind, kind)


def _turn(ours: Form, theirs: Form) -> tuple[int, ...]:
    """How images or series lie in the second form against the first, told from shapes that fit one way only.

    () where alike. Of series the inputs are asked: a converter may hold the values between as images of one row.
    """
    for a, b in zip(ours.inputs, theirs.inputs, strict=False):
        own, other = ours.shapes[settled(ours, a)], theirs.shapes[settled(theirs, b)]
        if len(own) == 3 and own != other and own == _turned(other, _SERIES):
            return _SERIES
    images = {shape for shape in ours.shapes.values() if len(shape) == 4}
    votes = dict.fromkeys(((), *_TURNS), 0)
    for shape in theirs.shapes.values():
        if len(shape) == 4:
            fits = [t for t in votes if (tuple(shape[i] for i in t) if t else shape) in images]
            if len(fits) == 1:
                votes[fits[0]] += 1
    return max(votes, key=lambda t: votes[t])


def _layout(ours: tuple[int, ...], theirs: tuple[int, ...], turn: tuple[int, ...]) -> Layout | None:
    """From the second form's shape to the first's; None where they cannot be one tensor."""
    if len(ours) == len(theirs) == 4:
        for t in (turn, (), *_TURNS):
            if len(t) != len(_SERIES) and _turned(theirs, t) == ours:
                return Layout(t, ours)
    if turn == _SERIES and len(ours) == 3 and len(theirs) in (3, 4):
        turned: tuple[int, ...] = _SERIES if len(theirs) == 3 else _TURNS[1]
        for t in (turned, ()):
            if _squeezed(_turned(theirs, t)) == _squeezed(ours):
                return Layout(t, ours)
    return Layout((), ours) if ours == theirs or _squeezed(ours) == _squeezed(theirs) else None


def _turned(shape: tuple[int, ...], turn: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[i] for i in turn) if len(turn) == len(shape) else shape


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _likeness(a: Array, b: Array) -> float:
    """Cosine of the angle between two arrays, 0 where one of them is nothing."""
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length > 0 and np.isfinite(length) else 0.0
