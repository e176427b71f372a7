"""Why a step parts from the other form, told from measurements, and what to try.

`measure` recomputes the named step with one thing put right at a time; `judge` decides and does nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_trainer.optimize.forms import JOINING, Step
from kasmina_trainer.optimize.parting import (
    FAULT_DB,
    TINY,
    Look,
    Scene,
    own_error,
    parts_of,
    power,
    rounded_weights,
    width,
)

Array = npt.NDArray[Any]

_MOST_OF = 0.5
_COARSE = 2.0
_SPREAD = 8.0
_PEAKED = 4.0
_BEYOND = 4.0


@dataclass(frozen=True)
class Evidence:
    """What was measured at a named step. Shares are of its own error's power unless they say otherwise.

    Attributes:
        exact: Both forms store it alike: it was compared number by number.
        most_steps: Largest own error in steps of the output's scale; 0 without a scale.
        outside: Share of the values that lie outside of what the output can hold.
        clipped: Share of the error that cutting them off makes.
        ends: Real values between which the output can hold; None in floating point.
        needed: Smallest and largest value that should be held.
        offset: Mean error in steps.
        offset_share: Share of the error that is one constant.
        weights_share: Share of the error that the stored weights and bias make.
        weights_beyond: Error by weights over what rounding them at their own scale explains, as a ratio of powers.
        weight_bits: Of the stored weights; 0 where they are floats or there are none.
        one_scale: The weights have one scale for all channels.
        spread: Largest over smallest channel's largest weight.
        coarseness: The output's step over the step its values would need.
        peak: Largest value over the 99.9th percentile of all values.
        shared_with: The step that makes it share its scale; "".
        own_fault: The range would be too narrow, or too coarse, for the first form's values as well.
    """

    exact: bool = False
    most_steps: float = 0.0
    outside: float = 0.0
    clipped: float = 0.0
    ends: tuple[float, float] | None = None
    needed: tuple[float, float] = (0.0, 0.0)
    offset: float = 0.0
    offset_share: float = 0.0
    weights_share: float = 0.0
    weights_beyond: float = 0.0
    weight_bits: int = 0
    one_scale: bool = False
    spread: float = 1.0
    coarseness: float = 1.0
    peak: float = 1.0
    shared_with: str = ""
    own_fault: bool = True


@dataclass(frozen=True)
class Cause:
    """A verdict: a stable word, a sentence with its figures, and what to try."""

    word: str
    sentence: str
    advice: str

    @property
    def coarse(self) -> bool:
        """Too few steps for the values; anything else is a fault."""
        return self.word in COARSE


COARSE = ("shared scale", "outliers", "wide range", "4-bit weights", "channel spread", "coarse weights")
CLEAR_DB = 10.0
"""What is no plain fault is named from here on: a few frames need less of a range than calibration saw."""
FAULTS = ("range clipped", "zero point", "weights differ")
CONSEQUENCES = ("range clipped", "zero point", "wide range", "shared scale", "outliers")
"""Words that may be told of a sound step whose inputs are wrong."""


def is_culprit(found: Look, cause: Cause, evidence: Evidence, *, first: bool) -> bool:
    """Whether a suspect is named. Pure.

    Coarseness is named where it matters in the answers, a fault also where it is large. Behind another culprit, a step
    is not blamed for values that only come to it by that one's fault.
    """
    if not found.suspect or (cause.word not in FAULTS and found.excess_db < CLEAR_DB):
        return False
    if not (found.matters or (found.excess_db > FAULT_DB and not cause.coarse)):
        return False
    return first or evidence.own_fault or cause.word not in CONSEQUENCES


def judge(evidence: Evidence) -> Cause:
    """The likeliest cause. Pure.

    >>> judge(Evidence(clipped=0.9, outside=0.3, ends=(0.0, 1.0), needed=(0.0, 4.0))).word
    'range clipped'
    """
    e = evidence
    if e.clipped >= _MOST_OF and e.ends is not None:
        held, needed = e.ends[1] - e.ends[0], e.needed[1] - e.needed[0]
        text = (
            f"{e.outside:.1%} of its values lie outside of {e.ends[0]:.4g} to {e.ends[1]:.4g}, all that the output can "
            f"hold (values run from {e.needed[0]:.4g} to {e.needed[1]:.4g})"
        )
        if held >= 0.9 * needed:
            return Cause(
                "zero point",
                text + "; the range is wide enough and lies in the wrong place: its zero point is wrong",
                "Quantize again from the float model; a tool that edited this file wrote a wrong zero point.",
            )
        return Cause(
            "range clipped", text,
            "Calibrate with frames like these, or with min-max instead of a percentile; add head-room.",
        )  # fmt: skip
    if e.weights_share >= _MOST_OF:
        return _of_weights(e)
    if e.offset_share >= 0.8 and abs(e.offset) >= 1:
        return Cause(
            "zero point",
            f"its values are off by one constant, {e.offset:+.1f} steps: what writes and what reads them disagree "
            "about the zero point",
            "Quantize again from the float model, or make the zero points of quantize and dequantize equal.",
        )
    if e.coarseness >= _COARSE:
        return _of_step(e)
    if e.exact:
        return Cause(
            "engine",
            f"the same file, and values up to {e.most_steps:.0f} steps apart: the engines' kernels differ by more than "
            "rounding",
            "Report the operator to the engine's makers; meanwhile use the engine that the self-test was made on.",
        )
    return Cause(
        "computes otherwise",
        "neither range nor step nor weights explain it: this operation computes something else (padding, version)",
        "Compare the operation's attributes in both files, and replay it on another engine.",
    )


def measure(scene: Scene, found: Look) -> Evidence:
    """Look into a named step."""
    pair = found.pair
    scheme, right = scene.theirs.schemes.get(pair.theirs), scene.right(pair)
    written = pair.layout.apply(scene.their_values[pair.theirs])
    error = own_error(right, written, scene.our_values[pair.ours])
    total = max(power(error), TINY)
    weights = scene.weights(pair)
    weights_share = beyond = 0.0
    differs = scene.theirs.unrounded() is not scene.theirs
    if pair.step is not None and not differs:
        weights_share = float(_other_weights(scene, found))
    elif pair.step is not None and not scene.exact:
        by_weights = scene.with_weights(pair)
        weights_share = min(1.0, power(by_weights - right) / total)
        beyond = _beyond(scene, found, by_weights, right)
    first = weights[0] if weights else None
    spread = 1.0
    if first is not None:
        peaks = first.channel_peaks()
        spread = float(peaks.max() / max(float(peaks[peaks > 0].min()), 1e-12)) if (peaks > 0).any() else 1.0
    common = {
        "exact": scene.exact,
        "weights_share": weights_share,
        "weights_beyond": beyond,
        "weight_bits": first.scheme.bits if first is not None and first.scheme is not None else 0,
        "one_scale": first is not None and first.scheme is not None and len(first.scheme.scale) == 1,
        "spread": spread,
        "needed": (float(right.min()), float(right.max())),
    }
    if scheme is None:
        return Evidence(**common)  # type: ignore[arg-type]
    low, high = scheme.ends
    held = np.clip(right, low - scheme.step / 2, high + scheme.step / 2)
    levels = scheme.high - scheme.low
    needed_step = min(width(right[part]) for part in parts_of(scene, pair)) / levels
    tail = float(np.quantile(np.abs(right), 0.999))
    ours = scene.our_values[pair.ours]
    cut = power(ours - np.clip(ours, low - scheme.step / 2, high + scheme.step / 2)) > scheme.step**2 / 12
    coarse = scheme.step * levels > _COARSE * min(width(ours[part]) for part in parts_of(scene, pair))
    return Evidence(
        **common,  # type: ignore[arg-type]
        most_steps=float(np.abs(written - right).max() / scheme.step),
        outside=float((held != right).mean()),
        clipped=min(1.0, power(right - np.clip(right, low, high)) / total),
        ends=(low, high),
        offset=float(error.mean() / scheme.step),
        offset_share=float(error.mean()) ** 2 / total,
        coarseness=scheme.step / needed_step if needed_step > 0 else 1.0,
        peak=float(np.abs(right).max()) / tail if tail > 0 else 1.0,
        shared_with=_shared(scene, pair.theirs, pair.step),
        own_fault=cut or coarse,
    )


def _of_weights(e: Evidence) -> Cause:
    if e.weights_beyond > _BEYOND or not e.weight_bits:
        return Cause(
            "weights differ",
            f"weights or bias are not those of the other form: {e.weights_share:.0%} of the error comes from them, "
            + (f"{e.weights_beyond:.3g} times what rounding them explains" if e.weight_bits else "and none is rounded"),
            "Export again from the same checkpoint; if it was retrained (QAT), compare with the retrained network.",
        )
    if e.weight_bits <= 4:
        return Cause(
            "4-bit weights",
            f"its weights have {e.weight_bits} bits, and rounding them makes {e.weights_share:.0%} of the error",
            "Give this layer 8-bit weights (per-layer precision), or train with fake quantization (QAT).",
        )
    if e.one_scale and e.spread >= _SPREAD:
        return Cause(
            "channel spread",
            f"one scale for all channels, whose largest weights differ by a factor of {e.spread:.0f}",
            "Equalise the layers around it (cross-layer equalisation), or store one scale a channel.",
        )
    return Cause(
        "coarse weights",
        f"rounding its {e.weight_bits}-bit weights makes {e.weights_share:.0%} of the error",
        "Keep this layer in more bits or in floating point, or train with fake quantization (QAT).",
    )


def _of_step(e: Evidence) -> Cause:
    text = f"its step is {e.coarseness:.1f} times what its values need"
    if e.shared_with:
        return Cause(
            "shared scale",
            f"{text}, because it shares its scale with {e.shared_with}",
            "Give outputs of different range a scale of their own: return them separately instead of joined.",
        )
    if e.peak >= _PEAKED:
        return Cause(
            "outliers",
            f"{text}: its largest value is {e.peak:.1f} times the 99.9th percentile",
            "Cut the outliers (percentile or MSE calibration), keep this layer in 16 bits or float, or train with QAT.",
        )
    return Cause(
        "wide range", f"{text}", "Calibrate with frames like these, or with less head-room; a percentile cuts outliers."
    )


def _other_weights(scene: Scene, found: Look) -> bool:
    """Whether two float forms of a step have other weights, in whatever layout."""
    pair = found.pair
    if pair.step is None or pair.origin is None:
        return False
    ours, theirs = scene.ours.weights(pair.origin), scene.theirs.weights(pair.step)
    return len(ours) == len(theirs) and any(
        a.values.size == b.values.size and not _alike(a.values, b.values) for a, b in zip(ours, theirs, strict=True)
    )


def _alike(a: Array, b: Array) -> bool:
    """Whether two constants are equal; in different layouts, whether they hold equal values."""
    if a.shape != b.shape:
        a, b = np.sort(a, None), np.sort(b, None)
    return bool(np.allclose(a, b, atol=1e-6))


def _beyond(scene: Scene, found: Look, by_weights: Array, right: Array) -> float:
    """Error by weights over what rounding them at their own scales explains."""
    weights = scene.weights(found.pair)
    if not weights:
        return 0.0
    rng = np.random.default_rng(scene.seed)
    tried = {}
    for w in weights:
        assert w.scheme is not None
        channels = w.values.shape[w.axis]
        steps = w.scheme.scale if len(w.scheme.scale) == channels else np.full(channels, w.scheme.step)
        tried[w.key] = rounded_weights(w, steps, rng)
    noise = power(scene.with_weights(found.pair, tried) - by_weights)
    return power(by_weights - right) / max(noise, TINY)


def _shared(scene: Scene, key: str, step: Step | None) -> str:
    """The joining step that makes this tensor share its scale, or the step itself; "" where there is none."""
    form = scene.theirs
    if step is not None and step.kind in JOINING:
        return f"its other parts ({step.label})"
    scheme = form.schemes.get(key)
    for reader in form.readers(key):
        if reader.kind in JOINING and scheme is not None and scheme.same_as(form.schemes.get(reader.outputs[0])):
            return f"the other inputs of {reader.label}"
    return ""
