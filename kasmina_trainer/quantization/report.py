"""What quantization cost and bought, as one value: accuracy, size, latency an operator, and the layers that hurt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization.config import QuantizeConfig
from kasmina_trainer.quantization.ranges import Array
from kasmina_trainer.quantization.sensitivity import Effect, Sensitivities

MOST_LAYERS = 5


@dataclass(frozen=True)
class QuantizationReport:
    """One quantized file against the float network.

    Attributes:
        config: How it was made.
        bits: Width of each weighted layer's weights, by module name.
        samples: Held-out inputs that were measured on.
        agreement: Share of them whose top answer is the float network's.
        accuracy: Share answered rightly; None without labels.
        float_accuracy: The float network's.
        size_bytes: Of the file.
        float_size_bytes: Of the float file.
        latency_ms: Of operators, in order, as a function of the caller tells them; empty where none does.
        hurts: The layers with the largest effect, worst first.
        notes: What was done, a sentence each.
    """

    config: QuantizeConfig
    bits: Mapping[str, int]
    samples: int
    agreement: float
    accuracy: float | None
    float_accuracy: float | None
    size_bytes: int
    float_size_bytes: int
    latency_ms: tuple[tuple[str, float], ...] = ()
    hurts: tuple[Effect, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1 or self.size_bytes < 1:
            raise InputError(
                f"report: {self.samples} samples and {self.size_bytes} bytes; at least 1 of each is needed"
            )

    @property
    def lost_points(self) -> float | None:
        """Accuracy lost against the float network, in points (hundredths); negative where it gained."""
        if self.accuracy is None or self.float_accuracy is None:
            return None
        return 100 * (self.float_accuracy - self.accuracy)

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        data["config"] = self.config.model_dump(mode="json")
        data["bits"] = dict(self.bits)
        data["lost_points"] = self.lost_points
        return data

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        share = self.size_bytes / self.float_size_bytes if self.float_size_bytes else 1.0
        out = [f"size      {self.size_bytes:,} B, {share:.0%} of the float file"]
        if self.lost_points is not None and self.accuracy is not None:
            out.append(
                f"accuracy  {self.accuracy:.2%} on {self.samples} held-out inputs, {self.lost_points:+.2f} points lost"
            )
        out.append(f"agreement {self.agreement:.2%} with the float network")
        if self.latency_ms:
            total = sum(ms for _, ms in self.latency_ms)
            out.append(f"latency   {total:.3g} ms; most of it: {_longest(self.latency_ms)}")
        widths = {width: sum(b == width for b in self.bits.values()) for width in (4, 8, 32)}
        out.append("weights   " + ", ".join(f"{n} layers at {width} bits" for width, n in widths.items() if n))
        for effect in self.hurts[:MOST_LAYERS]:
            lost = "" if effect.accuracy_loss is None else f", {100 * effect.accuracy_loss:+.2f} points lost"
            out.append(f"hurts     {effect.layer} at {effect.bits} bits: answers move by {effect.distance:.2g}{lost}")
        return out + [f"note      {note}" for note in self.notes]


def report_of(
    config: QuantizeConfig,
    bits: Mapping[str, int],
    *,
    answers: Array,
    float_answers: Array,
    labels: Array | None,
    size_bytes: int,
    float_size_bytes: int,
    latency_ms: Sequence[tuple[str, float]] = (),
    found: Sensitivities | None = None,
    notes: Sequence[str] = (),
) -> QuantizationReport:
    """The report of one file from what was measured. Pure.

    Args:
        config: How the file was made.
        bits: Width of each weighted layer (`Prepared.bits`).
        answers: The file's, of classes, on held-out inputs.  # (N, classes)
        float_answers: The float network's on the same inputs.  # (N, classes)
        labels: Their classes, or None.  # (N,)
        size_bytes: Of the file.
        float_size_bytes: Of the float file.
        latency_ms: Of operators, in order, e.g. of the hardware simulator.
        found: What single layers do (`measure_sensitivity`).
        notes: What was done (`Prepared.notes`).

    Raises:
        InputError: The answers do not fit each other, there are none, or one is not finite.
    """
    if answers.shape != float_answers.shape or answers.ndim != 2:
        raise InputError(f"report: answers {answers.shape} against {float_answers.shape}; (N, classes) twice is needed")
    for whose, values in (("the file's", answers), ("the float network's", float_answers)):
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise InputError(
                f"report: {bad} of {values.size} of {whose} answers are not finite numbers",
                "Run the file on an engine that computes its widths; 4-bit weights need LiteRT.",
            )
    top, float_top = answers.argmax(1), float_answers.argmax(1)
    return QuantizationReport(
        config,
        dict(bits),
        len(answers),
        float((top == float_top).mean()) if len(answers) else 0.0,
        None if labels is None else float((top == labels).mean()),
        None if labels is None else float((float_top == labels).mean()),
        size_bytes,
        float_size_bytes,
        tuple(latency_ms),
        found.worst() if found is not None else (),
        tuple(notes),
    )


def _longest(latency_ms: Sequence[tuple[str, float]]) -> str:
    worst = sorted(latency_ms, key=lambda pair: (-pair[1], pair[0]))[:3]
    return ", ".join(f"{name} {ms:.3g} ms" for name, ms in worst)
