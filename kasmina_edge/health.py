"""The health gate: may a trial bundle be committed? Measuring and judging are apart; every judge is a pure function.

Three questions in turn. Does it still know the *reference probes*, labelled inputs whose digest the change plan names,
so that no graft can bring its own? Are its scores on live frames like those of the active bundle? Is it quick enough?
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.change_plan import HealthLimits
from kasmina_edge.contracts.record import Summary
from kasmina_edge.engines.engine import Engine
from kasmina_edge.engines.tensors import from_model, softmax_score, to_model
from kasmina_edge.errors import BundleError, InputError, PlanError

MINIMUM_PROBES = 200
_ROUNDING = 1e-9  # in answers: 0.95 * 200 must ask for 190 of them, whatever the last bit says

Frames = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Answers = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Verdict:
    """One judge's answer.

    Attributes:
        ok: Whether the trial may go on.
        reason: One sentence with both numbers, for people; it is kept in the boot record when ``ok`` is false.
        numbers: The same numbers for machines; shares are of 1.
    """

    ok: bool
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeAnswers:
    """What one engine said to every probe: ``labels`` (N,) int64, and ``scores`` (N,) float32 of those labels, 0..1."""

    labels: Labels
    scores: npt.NDArray[np.float32]


def load_probes(
    bundle: Bundle, *, expected_sha256: str | None = None, minimum: int = MINIMUM_PROBES
) -> tuple[Frames, Labels]:
    """The bundle's reference probes.

    Args:
        bundle: Holds them as arrays ``inputs`` (N, ...) float32 and ``labels`` (N,) int64.
        expected_sha256: Digest that the change plan names; None where there is no plan.
        minimum: Fewer probes than this prove nothing.

    Returns:
        Inputs (N, ...) in the app's units, and the index of the right class of each (N,).

    Raises:
        PlanError: They are not the probes that the change plan names.
        BundleError: None, too few, damaged, or of another shape than the manifest's input.
    """
    manifest = bundle.manifest
    if manifest.probes is None:
        raise BundleError(f"{manifest.id}: has no reference probes, and the health gate asks for them")
    entry = manifest.probes.file
    if expected_sha256 is not None and entry.sha256 != expected_sha256:
        raise PlanError(
            f"{manifest.id}: reference probes {entry.sha256[:12]}, the change plan asks for {expected_sha256[:12]}"
        )
    where = f"{manifest.id}: {entry.path}"
    entry.check(bundle.read(entry), where=where)
    arrays = bundle.arrays(entry)
    if set(arrays) != {"inputs", "labels"}:
        raise BundleError(f"{where}: expected arrays inputs and labels, got {', '.join(sorted(arrays)) or 'none'}")
    inputs, labels = arrays["inputs"], arrays["labels"]
    shape = manifest.inputs[0].shape
    if inputs.dtype != np.float32 or inputs.shape[1:] != shape[1:] or inputs.ndim != len(shape):
        raise BundleError(f"{where}: inputs are {inputs.dtype} {inputs.shape}, expected float32 (N, *{shape[1:]})")
    if labels.dtype != np.int64 or labels.shape != inputs.shape[:1]:
        raise BundleError(f"{where}: labels are {labels.dtype} {labels.shape}, expected int64 ({len(inputs)},)")
    if len(labels) != manifest.probes.samples:
        raise BundleError(f"{where}: {len(labels)} probes, the manifest says {manifest.probes.samples}")
    if len(labels) < minimum:
        raise BundleError(f"{where}: {len(labels)} probes, the health gate asks for {minimum}")
    classes = manifest.outputs[0].shape[-1]
    if labels.min() < 0 or labels.max() >= classes:
        raise BundleError(
            f"{where}: labels run from {labels.min()} to {labels.max()}, the output has {classes} classes"
        )
    if not np.isfinite(inputs).all():
        raise BundleError(f"{where}: inputs hold values that are not finite")
    return inputs, labels


def probe(engine: Engine, bundle: Bundle, inputs: Frames) -> ProbeAnswers:
    """Ask every probe, one at a time, through the same (de)quantization as live frames.

    Args:
        engine: Runs the bundle's model; its first input takes the probe and its first output holds the class scores.
        bundle: Whose pre-processing applies.
        inputs: (N, ...) float32, each without the batch dimension.

    Raises:
        EngineError: The engine failed.
    """
    pre = bundle.manifest.preprocessing
    tensor_in, tensor_out = engine.model.app_inputs[0], engine.model.app_outputs[0]
    labels = np.empty(len(inputs), np.int64)
    scores = np.empty(len(inputs), np.float32)
    for i, frame in enumerate(inputs):
        engine.reset()  # a probe is answered for itself, whatever the model keeps
        outputs = engine.run({tensor_in.name: to_model(frame[None], tensor_in, pre)})
        logits = from_model(outputs[tensor_out.name], tensor_out)
        labels[i], scores[i] = softmax_score(logits)
    return ProbeAnswers(labels, scores)


def judge_probes(active_correct: Answers | None, trial_correct: Answers, limits: HealthLimits) -> Verdict:
    """Accuracy on the reference probes, alone and paired against the active bundle.

    Args:
        active_correct: (N,) whether the active bundle answered each probe rightly; None when nothing is active.
        trial_correct: (N,) the same of the trial bundle, in the same order.
        limits: ``minimum_accuracy`` and ``maximum_loss``; a value exactly on a limit passes.

    Raises:
        InputError: The two are not paired, or are empty.
    """
    count = len(trial_correct)
    if count == 0 or trial_correct.ndim != 1:
        raise InputError(f"trial answers: expected (N,) with N >= 1, got {trial_correct.shape}")
    right = int(np.count_nonzero(trial_correct))
    numbers: dict[str, float] = {"probes": float(count), "trial_accuracy": right / count}
    if active_correct is not None:
        if active_correct.shape != trial_correct.shape:
            raise InputError(
                f"probe answers are not paired: {active_correct.shape} active, {trial_correct.shape} trial"
            )
        lost = int(np.count_nonzero(active_correct & ~trial_correct))
        won = int(np.count_nonzero(trial_correct & ~active_correct))
        numbers["active_accuracy"] = int(np.count_nonzero(active_correct)) / count
        numbers |= {"lost": float(lost), "won": float(won), "loss": (lost - won) / count}
    said = f"reference probes {_percent(right / count)}"
    if right < limits.minimum_accuracy * count - _ROUNDING:
        return Verdict(False, f"{said}, plan asks {100 * limits.minimum_accuracy:g} %", numbers)
    if active_correct is not None and lost - won > limits.maximum_loss * count + _ROUNDING:
        return Verdict(
            False,
            f"{said}, {_points(numbers['loss'])} below the active bundle ({lost} answers lost, {won} won), "
            f"plan allows {100 * limits.maximum_loss:g}",
            numbers,
        )
    return Verdict(True, said, numbers)


def judge_live(active_scores: Summary | None, trial_scores: Summary | None, limits: HealthLimits) -> Verdict:
    """Mean top score on live frames, trial against active.

    With as many frames on both sides as the plan asks for, the means are compared as they are. With fewer, chance
    weighs more: the drop must then exceed the limit by two standard errors, so that one odd frame quarantines nothing.
    With none on a side there is nothing to compare and the probes alone decide.

    Args:
        active_scores: Top scores (0..1) of the active bundle; None or a count of 0 when none were seen.
        trial_scores: The same of the trial bundle.
        limits: ``live_frames`` (0 skips the comparison) and ``maximum_score_drop``; a drop exactly on it passes.
    """
    if limits.live_frames == 0:
        return Verdict(True, "live frames are not compared, says the plan")
    seen = {"active": active_scores, "trial": trial_scores}
    for side, summary in seen.items():
        if summary is None or summary.count == 0:
            return Verdict(True, f"no live frames of the {side} bundle were seen; the probes alone decide")
    assert active_scores is not None and trial_scores is not None
    few = min(active_scores.count, trial_scores.count)
    drop = active_scores.mean - trial_scores.mean
    slack = 0.0
    if few < limits.live_frames:
        variance = max(active_scores.variance, trial_scores.variance)
        if few == 1:
            variance = max(variance, 0.25)  # the largest a value in 0..1 can have: one frame shows no spread
        slack = 2 * math.sqrt(variance / active_scores.count + variance / trial_scores.count)
    numbers = {
        "active_score": active_scores.mean,
        "trial_score": trial_scores.mean,
        "active_frames": float(active_scores.count),
        "trial_frames": float(trial_scores.count),
        "drop": drop,
        "slack": slack,
    }
    said = f"mean live score {trial_scores.mean:.3f} against {active_scores.mean:.3f} of the active bundle"
    if drop > limits.maximum_score_drop + slack + _ROUNDING:
        margin = f" and chance explains {slack:.3f} ({few} frames)" if slack else ""
        return Verdict(False, f"{said}, plan allows a drop of {limits.maximum_score_drop:.3f}{margin}", numbers)
    return Verdict(True, said, numbers)


def judge_trial(
    active: Summary | None,
    trial: Summary | None,
    limits: HealthLimits | None,
    waited_s: float,
    *,
    active_was_live: bool = False,
) -> Literal["wait", "commit"] | str:
    """The live half of the health gate: "wait", "commit", or the reason to take the trial back.

    Args:
        active: Live scores of the active bundle before the trial.
        trial: Live scores of the trial bundle so far.
        limits: The plan's; None: there is nothing to compare with.
        waited_s: Since apps may follow the trial.
        active_was_live: An app was sending frames just before; when it then goes silent, the trial made it so.
    """
    if limits is None or limits.live_frames == 0:
        return "commit"
    count = trial.count if trial is not None else 0
    if count < limits.live_frames and waited_s < limits.live_timeout_s:
        return "wait"
    if count == 0 and active_was_live:
        return f"no live frame in {waited_s:.0f} s on trial, and an app was sending them before"
    verdict = judge_live(active, trial, limits)
    return "commit" if verdict.ok else verdict.reason


def judge_latency(p50_us: float, maximum_us: float | None) -> Verdict:
    """The self-test's median latency on this device against the plan's ceiling, both in microseconds."""
    numbers = {"p50_us": p50_us}
    if not math.isfinite(p50_us):
        return Verdict(False, f"median latency {p50_us} us is not a measurement", numbers)
    if maximum_us is not None and p50_us > maximum_us:
        return Verdict(False, f"median latency {p50_us:.6g} us, plan allows {maximum_us:.6g} us", numbers)
    return Verdict(True, f"median latency {p50_us:.0f} us", numbers)


def _percent(share: float) -> str:
    """Rounded down, so that a value below a limit never reads as if it were on it."""
    return f"{math.floor(1000 * share + _ROUNDING) / 10:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:.2f} points"
