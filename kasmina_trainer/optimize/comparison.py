"""``compare``: two forms on the same data, the first step where they part, by how much, and what to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.optimize import causes, parting
from kasmina_trainer.optimize.causes import Cause
from kasmina_trainer.optimize.forms import Form
from kasmina_trainer.optimize.matching import Pair, match, output_layouts
from kasmina_trainer.optimize.onnx_form import OnnxForm
from kasmina_trainer.optimize.parting import Look, Scene

Array = npt.NDArray[Any]

_FLOAT_DB = 100.0
MOST_FRAMES = 16
"""Frames that are looked into; answers are compared on all."""


@dataclass(frozen=True)
class Culprit:
    """A step where the forms part, and why."""

    look: Look
    cause: Cause
    place: str
    layer: str
    source: str


@dataclass(frozen=True)
class Answers:
    """Both forms' answers on all frames.

    Attributes:
        frames: How many.
        sqnr_db: Signal to error, the worst output's.
        largest: Largest absolute difference.
        agreement: Share of equal top answers; None where the first output is not (N, classes).
        accuracy: Of the first and second form; None without labels.
    """

    frames: int
    sqnr_db: float
    largest: float
    agreement: float | None
    accuracy: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        ours: The form that was held to be right.
        theirs: The other.
        looks: Every matched activation, in the second form's order.
        culprits: Those where they part, first ones first.
        answers: On all frames.
        notes: What else a reader should know.
        unmatched: Steps of the second form that have no match.
    """

    ours: str
    theirs: str
    looks: tuple[Look, ...]
    culprits: tuple[Culprit, ...]
    answers: Answers
    notes: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether nothing differs at all."""
        same = all(x.own_error == 0 and x.total_db >= 199 for x in self.looks) and self.answers.sqnr_db >= 199
        return same and self.answers.largest == 0 and not self.culprits

    def verdict(self) -> str:
        """One sentence."""
        if self.culprits:
            first = self.culprits[0]
            where = f"{first.place} (layer {first.layer})" if first.layer else first.place
            if first.cause.word == NOT_FINITE:
                return f"They part at {where}: {first.cause.sentence}."
            return (
                f"They part at {where}: {first.cause.sentence}. Its own error is {first.look.excess_db:.0f} dB above "
                "what rounding explains."
            )
        if self.identical:
            return "No difference: every value is the same."
        if all(x.own_error == 0 for x in self.looks):
            return "No step differs; the answers do: see the notes."
        if all(x.total_db > _FLOAT_DB for x in self.looks):
            return "No difference beyond floating-point rounding."
        worst = max((x for x in self.looks if x.own_error > 0), key=lambda x: x.answers_share)
        return (
            f"No step parts by more than rounding explains. Most of what is left comes from {place_of(worst.pair)} "
            f"({worst.own_db:.0f} dB signal to error)."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "ours": self.ours,
            "theirs": self.theirs,
            "verdict": self.verdict(),
            "identical": self.identical,
            "answers": vars(self.answers),
            "culprits": [
                {
                    "step": c.place, "layer": c.layer, "source": c.source, "cause": c.cause.word,
                    "sentence": c.cause.sentence, "try": c.cause.advice, "excess_db": c.look.excess_db,
                    "own_db": c.look.own_db, "answers_db": c.look.answers_db,
                }
                for c in self.culprits
            ],
            "steps": [
                {
                    "step": place_of(x.pair), "layer": layer_of(x.pair), "sqnr_db": x.total_db, "cosine": x.cosine,
                    "own_db": x.own_db, "excess_db": x.excess_db, "answers_db": x.answers_db, "named": x.named,
                }
                for x in self.looks
            ],
            "unmatched": list(self.unmatched),
            "notes": list(self.notes),
        }  # fmt: skip


def compare(
    ours: Form, theirs: Form, frames: Sequence[Array], labels: Array | None = None, *, most_frames: int = MOST_FRAMES
) -> Comparison:
    """Run both forms and find where they part.

    A quantized form is measured against a float one, whichever is named first.

    Args:
        ours: The form that is held to be right.
        theirs: The form that is doubted.
        frames: One array an input, without batch axis.  # (N, ...)
        labels: True classes, or None.  # (N,)
        most_frames: How many, evenly taken, are looked into.

    Raises:
        InputError: No frames, labels of another number, or inputs that do not fit.
    """
    count = len(frames[0]) if frames else 0
    if not count or (labels is not None and len(labels) != count):
        raise InputError(
            f"{count} frames and {'no' if labels is None else len(labels)} labels: a label a frame is needed"
        )
    notes = []
    if ours.quantized and not theirs.quantized:
        ours, theirs = theirs, ours
        notes.append(f"{ours.title} is the float form and was held to be right.")
    rows = np.linspace(0, count - 1, min(count, most_frames)).round().astype(np.intp)
    scene = set_scene(ours, theirs, [x[rows] for x in frames])
    if ours.quantized and not scene.exact:
        notes.append(f"{ours.title} stores values otherwise: its weights were compared without its rounding.")
    whole, scene = scene, _finite(scene)
    looks, culprits = _named(scene, parting.look(scene))
    culprits = sorted([*culprits, *_broken(whole)], key=lambda c: -1 if (s := c.look.pair.step) is None else s.index)
    matched = {p.step.index for p in whole.pairs if p.step is not None}
    lost = [s.label for s in theirs.steps if s.index not in matched and s.kind in _WEIGHTED]
    if lost:
        notes.append(f"{len(lost)} steps of {theirs.title} have no counterpart that could be found.")
    answers, more = _answers(ours, theirs, frames, labels)
    return Comparison(ours.title, theirs.title, looks, tuple(culprits), answers, (*notes, *more), tuple(lost))


def _named(scene: Scene, looks: Sequence[Look]) -> tuple[tuple[Look, ...], list[Culprit]]:
    """The looks with culprits marked, and these with their causes."""
    marked: list[Look] = []
    culprits: list[Culprit] = []
    for found in looks:
        if found.suspect:
            evidence = causes.measure(scene, found)
            cause = causes.judge(evidence)
            if causes.is_culprit(found, cause, evidence, first=not culprits):
                found = replace(found, named=True)
                pair = found.pair
                culprits.append(Culprit(found, cause, place_of(pair), layer_of(pair), source_of(pair)))
        marked.append(found)
    return tuple(marked), culprits


def _finite(scene: Scene) -> Scene:
    """The scene without activations in which either form has values that are no numbers: no step explains those."""

    def sound(pair: Pair) -> bool:
        return bool(
            np.isfinite(scene.our_values[pair.ours]).all() and np.isfinite(scene.their_values[pair.theirs]).all()
        )

    return replace(scene, pairs=tuple(pair for pair in scene.pairs if sound(pair)))


def _broken(scene: Scene) -> list[Culprit]:
    """The first step of the second form that gives what is no number where the first form gives numbers."""
    for pair in scene.pairs:
        written = scene.their_values[pair.theirs]
        bad = int((~np.isfinite(written)).sum())
        if bad and np.isfinite(scene.our_values[pair.ours]).all():
            cause = Cause(
                NOT_FINITE, f"{bad} of {written.size} values are not finite numbers",
                "Look for NaN among its weights; 4-bit weights need a runtime that has them, so try another engine.",
            )  # fmt: skip
            found = Look(pair, -199.0, 0.0, -199.0, 199.0, 1.0, 0.0, 0.0, suspect=True, matters=True, named=True)
            return [Culprit(found, cause, place_of(pair), layer_of(pair), source_of(pair))]
    return []


NOT_FINITE = "not finite"
_WEIGHTED = ("conv_2d", "depthwise_conv_2d", "fully_connected", "transpose_conv", "batch_matmul")


def set_scene(ours: Form, theirs: Form, frames: Sequence[Array]) -> Scene:
    """Both forms' values on the same frames; two quantized forms that store alike are compared number by number.

    Raises:
        InputError: Inputs do not fit.
    """
    for number, x in enumerate(frames):
        if not np.isfinite(x).all():
            raise InputError(f"input {number}: {int((~np.isfinite(x)).sum())} values are not finite numbers")
    our_values, their_values = ours.values(ours.fit(frames)), theirs.values(theirs.fit(frames))
    pairs = match(ours, theirs, our_values, their_values)
    exact = ours.quantized and all(_stored_alike(ours, theirs, p) for p in pairs)
    if ours.quantized and not exact:
        ours = ours.unrounded()
        our_values = ours.values(ours.fit(frames))
        pairs = match(ours, theirs, our_values, their_values)
    return Scene(ours, theirs, pairs, our_values, their_values, exact)


def place_of(pair: Pair) -> str:
    """``op 3 CONV_2D``, or the input's name."""
    return pair.step.label if pair.step is not None else f"input {pair.theirs}"


def layer_of(pair: Pair) -> str:
    """The layer's name, of whichever form knows it; the first form's first."""
    names = [s.layer for s in (pair.origin, pair.step) if s is not None and s.layer]
    return names[0] if names else ""


def source_of(pair: Pair) -> str:
    """The layer's source line, where a form knows it."""
    return pair.origin.source if pair.origin is not None else ""


def _stored_alike(ours: Form, theirs: Form, pair: Pair) -> bool:
    mine, other = ours.schemes.get(pair.ours), theirs.schemes.get(pair.theirs)
    return other is None if mine is None else mine.same_as(other)


def _answers(
    ours: Form, theirs: Form, frames: Sequence[Array], labels: Array | None
) -> tuple[Answers, tuple[str, ...]]:
    mine, other = ours.answers(ours.fit(frames)), theirs.answers(theirs.fit(frames))
    layouts = output_layouts(ours, theirs)
    notes = []
    worst, largest = 199.0, 0.0
    other = [layout.apply(b) for layout, b in zip(layouts, other, strict=True)]
    for form, values in ((ours, mine), (theirs, other)):
        bad = sum(int((~np.isfinite(x)).sum()) for x in values)
        if bad:
            notes.append(f"{form.title}: {bad} of {sum(x.size for x in values)} answers are not finite numbers.")
    for a, b in zip(mine, other, strict=True):
        sound = np.isfinite(a) & np.isfinite(b)
        if not sound.all():
            worst, a, b = -199.0, a[sound], b[sound]
        if not a.size:
            continue
        worst = min(worst, parting.decibels(parting.power(a), parting.power(a.astype(np.float64) - b)))
        largest = max(largest, float(np.abs(a.astype(np.float64) - b).max()))
    first, second = (x[0].reshape(len(x[0]), -1) for x in (mine, other))
    classes = first.shape[1] > 1 and len(_squeezed(mine[0])) == 1
    agreement = float((first.argmax(1) == second.argmax(1)).mean()) if classes else None
    accuracy = None
    if labels is not None and classes:
        accuracy = (float((first.argmax(1) == labels).mean()), float((second.argmax(1) == labels).mean()))
    for form in (ours, theirs):
        if isinstance(form, OnnxForm) and form.quantized:
            notes.append(f"{form.title}: steps were read without ONNX Runtime's fusions, answers with them.")
    return Answers(len(first), worst, largest, agreement, accuracy), tuple(notes)


def _squeezed(values: Array) -> tuple[int, ...]:
    return tuple(n for n in values.shape[1:] if n != 1)
