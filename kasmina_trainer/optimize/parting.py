"""How much each step of one form adds to its distance from another, beyond what rounding explains.

A step is given what the second form really had in front of it, and the first form computes it: what is left between
this and what the second form wrote is the step's own error, free of everything before it. Held against it is the error
that one well-chosen step of rounding makes: the output's own range in 255 steps, step squared over 12 (Widrow and
Kollar 2008), and its weights in 255 steps a channel, by trial. So the culprit is where error jumps, not where it has
added up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_trainer.optimize.forms import FIXED_SCALE, JOINING, MOVEMENT, Form, Weights, segment
from kasmina_trainer.optimize.matching import Pair

Array = npt.NDArray[Any]

EXCESS_DB = 6.0
"""A step whose own error is more than twice (6 dB) what rounding explains, is looked at."""
BUDGET_SHARE = 0.5
"""It matters when it alone moves the answers half as much as all rounding together."""
FAULT_DB = 15.0
"""A fault - a cut range, other weights, a wrong zero point - is named from here on, whether it matters or not."""
TINY = float(np.finfo(np.float32).tiny)
_FLOAT_NOISE = 1e-4
_KEPT_SCALE = frozenset({"average_pool_2d", "max_pool_2d", "pad", "resize_bilinear", "resize_nearest_neighbor"})
_MOST_DB = 199.0
_MOST_TRIED = 60


@dataclass(frozen=True)
class Look:
    """What was found at one activation.

    Attributes:
        pair: The activation in both forms.
        total_db: Signal to error there, with everything that came before; 199 where there is no error.
        cosine: Of the angle between both forms' values.
        own_db: Signal to error of this step alone.
        excess_db: Its own error over what rounding explains; negative where rounding explains it.
        answers_share: Share of the answers' power that would be error if this step alone erred, 0 to 1.
        explained: Mean square that rounding explains.
        own_error: Mean square of its own error.
        suspect: Rounding does not explain its own error.
        matters: It alone moves the answers at least half as much as all rounding that is explained does.
        named: It is a culprit.
    """

    pair: Pair
    total_db: float
    cosine: float
    own_db: float
    excess_db: float
    answers_share: float
    explained: float
    own_error: float
    suspect: bool = False
    matters: bool = False
    named: bool = False

    @property
    def answers_db(self) -> float:
        """Signal to error of the answers if this step alone erred."""
        return decibels(1.0, self.answers_share)


@dataclass(frozen=True)
class Scene:
    """Both forms with their values on the same frames.

    Attributes:
        ours: The form that is held to be right.
        theirs: The other.
        pairs: Activations in both.
        our_values: By tensor.
        their_values: By tensor.
        exact: Both store every matched activation alike, so that steps are compared number by number.
        seed: Of the rounding that is tried on weights.
    """

    ours: Form
    theirs: Form
    pairs: tuple[Pair, ...]
    our_values: Mapping[str, Array]
    their_values: Mapping[str, Array]
    exact: bool
    seed: int = 0

    @cached_property
    def given(self) -> dict[str, Array]:
        """The second form's values under the first form's names and in its layout."""
        return {p.ours: p.layout.apply(self.their_values[p.theirs]) for p in self.pairs}

    @cached_property
    def their_given(self) -> dict[str, Array]:
        """The second form's values of matched activations, under its own names."""
        return {p.theirs: self.their_values[p.theirs] for p in self.pairs}

    def right(self, pair: Pair) -> Array:
        """What the first form makes of what the second had in front of this step."""
        if pair.step is None:
            return self.our_values[pair.ours]
        return self.ours.replay(pair.ours, self.given)

    def weights(self, pair: Pair) -> tuple[Weights, ...]:
        """Stored weights of the second form's step, in real units."""
        unrounded = self.theirs.unrounded()
        found = self.theirs.weights(pair.step) if pair.step is not None else ()
        return tuple(w for w in found if w.scheme is not None) if unrounded is not self.theirs else ()

    def with_weights(self, pair: Pair, constants: Mapping[str, Array] | None = None) -> Array:
        """What the second form's own weights make of what it had, without rounding; in the first form's layout."""
        return pair.layout.apply(self.theirs.unrounded().replay(pair.theirs, self.their_given, constants))


def look(scene: Scene) -> tuple[Look, ...]:
    """Every matched activation, in the second form's order; suspects are marked."""
    found = []
    for pair in scene.pairs:
        right, written = scene.right(pair), pair.layout.apply(scene.their_values[pair.theirs])
        own = own_error(right, written, scene.our_values[pair.ours])
        explained = explained_error(scene, pair, right)
        excess = max(decibels(power(own[part]), level) for part, level in explained)
        mean = sum(level * own[part].size for part, level in explained) / max(1, own.size)
        ours = scene.our_values[pair.ours]
        found.append((pair, own, ours, written, right, excess, mean))
    by_size = sorted(range(len(found)), key=lambda i: (-found[i][5], i))[:_MOST_TRIED]
    shares = {i: answers_share(scene, found[i][0], found[i][1]) for i in by_size if power(found[i][1]) > 0}
    looks = [
        Look(
            pair, decibels(power(ours), power(written - ours)), _cosine(ours, written),
            decibels(power(right), power(own)), excess, shares.get(i, 0.0), mean, power(own),
        )
        for i, (pair, own, ours, written, right, excess, mean) in enumerate(found)
    ]  # fmt: skip
    return mark(looks)


def mark(looks: Sequence[Look]) -> tuple[Look, ...]:
    """The same with `Look.suspect` and `Look.matters` set. Pure."""
    budget = sum(x.answers_share * min(1.0, x.explained / x.own_error) for x in looks if x.own_error > 0)
    return tuple(
        replace(x, suspect=x.excess_db > EXCESS_DB, matters=x.answers_share > BUDGET_SHARE * budget) for x in looks
    )


def own_error(right: Array, written: Array, ours: Array) -> Array:
    """What a step adds; an offset that brings it nearer to the first form's own value is a correction and left out."""
    error = written.astype(np.float64) - right
    axes = tuple(range(error.ndim - 1))
    offset = error.mean(axis=axes, keepdims=True)
    if power(written - ours) < power(written - offset - ours):
        return np.asarray(error - offset)
    return np.asarray(error)


def explained_error(scene: Scene, pair: Pair, right: Array) -> list[tuple[Any, float]]:
    """Mean square that rounding explains, of each part of the activation that once was a tensor of its own."""
    floor = (_FLOAT_NOISE**2) * power(right) + TINY
    scheme = scene.theirs.schemes.get(pair.theirs)
    weights = _weight_noise(scene, pair)
    if scheme is None:
        return [(..., floor + weights)]
    kind = pair.step.kind if pair.step is not None else ""
    if scene.exact or kind in FIXED_SCALE:
        return [(..., scheme.step**2 + floor)]
    if kind in _KEPT_SCALE:
        return [(..., scheme.step**2 / 6 + floor)]
    levels, roundings = scheme.high - scheme.low, _roundings(scene, pair)
    return [
        (part, roundings * (width(right[part]) / levels) ** 2 / 12 + weights + floor) for part in parts_of(scene, pair)
    ]


def _roundings(scene: Scene, pair: Pair) -> int:
    """How often the second form rounds where the first has one step: a normalisation may be eight operations."""
    if pair.step is None:
        return 1
    steps, _ = segment(scene.theirs.steps, pair.theirs, scene.their_given)
    return max(1, sum(any(key in scene.theirs.schemes for key in s.outputs) for s in steps if s.kind not in MOVEMENT))


def parts_of(scene: Scene, pair: Pair) -> list[Any]:
    """Slices of a joined activation, one for each tensor that went in; the whole of any other."""
    origin = pair.origin
    if origin is None or origin.kind not in JOINING or len(origin.inputs) < 2:
        return [...]
    whole = scene.ours.shapes[pair.ours]
    shapes = [scene.ours.shapes[key] for key in origin.inputs]
    axis = next(
        (i for i in range(len(whole)) if all(len(s) == len(whole) for s in shapes) and
         sum(s[i] for s in shapes) == whole[i] and any(s[i] != whole[i] for s in shapes)), None,
    )  # fmt: skip
    if axis is None:
        return [...]
    ends = np.cumsum([s[axis] for s in shapes])
    return [
        (slice(None),) * (axis + 1) + (slice(int(end - s[axis]), int(end)),)
        for end, s in zip(ends, shapes, strict=True)
    ]


def answers_share(scene: Scene, pair: Pair, error: Array) -> float:
    """What the step's own error alone does to the first form's answers: share of their power, the worst output's."""
    form, values = scene.ours, scene.our_values
    touched = {pair.ours}
    for step in form.steps:
        if touched & set(step.inputs):
            touched.update(step.outputs)
    given = {key: value for key, value in values.items() if key not in touched}
    given[pair.ours] = (values[pair.ours] + error).astype(np.float32)
    worst = 0.0
    for output in form.outputs:
        if output not in touched:
            continue
        moved = given[output] if output == pair.ours else form.replay(output, given)
        worst = max(worst, spoiled(values[output], moved))
    return worst


def spoiled(right: Array, moved: Array) -> float:
    """Mean over channels of error power over signal power, at most 1 a channel: small outputs count like large ones."""
    right, moved = right.astype(np.float64), moved.astype(np.float64)
    axes = tuple(range(right.ndim - 1))
    signal, error = (right**2).mean(axis=axes), ((moved - right) ** 2).mean(axis=axes)
    return float(np.minimum(1.0, error / np.maximum(signal, TINY)).mean())


def power(values: Array) -> float:
    """Mean square."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return float(flat @ flat) / max(1, flat.size)


def decibels(signal: float, error: float) -> float:
    """Ratio of two powers, held within 199 dB.

    >>> round(decibels(100.0, 1.0))
    20
    """
    if not error > 0:
        return _MOST_DB if signal > 0 else 0.0
    if not signal > 0:
        return -_MOST_DB
    return min(_MOST_DB, max(-_MOST_DB, 10 * math.log10(signal / error)))


def width(values: Array) -> float:
    """Of the range that values need, zero inside of it."""
    return float(max(values.max(), 0.0) - min(values.min(), 0.0)) if values.size else 0.0


def rounded_weights(weights: Weights, step: Array, rng: np.random.Generator) -> Array:
    """Weights moved by up to half a step each way.

    Args:
        weights: What to move.
        step: One an output channel.  # (O,)
        rng: Chooses the moves.
    """
    shape = [1] * weights.values.ndim
    shape[weights.axis] = -1
    moves = rng.uniform(-0.5, 0.5, weights.values.shape)
    return (weights.values + moves * step.reshape(shape)).astype(np.float32)


def _weight_noise(scene: Scene, pair: Pair) -> float:
    """Mean square that weights in 255 steps a channel add."""
    found = scene.weights(pair)
    if not found or scene.exact:
        return 0.0
    rng = np.random.default_rng(scene.seed)
    tried = {w.key: rounded_weights(w, w.channel_peaks() / 127, rng) for w in found}
    return power(scene.with_weights(pair, tried) - scene.with_weights(pair))


def _cosine(a: Array, b: Array) -> float:
    length = math.sqrt(power(a) * power(b))
    if not length > 0:
        return 1.0 if power(a) == power(b) else 0.0
    return float(np.mean(a.astype(np.float64) * b)) / length
