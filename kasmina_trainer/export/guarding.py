"""The guard of a bundle: fitted to what its own TFLite file gives for good frames, and signed with everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import FileEntry, InputGuard
from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.detector import FALSE_ALARMS, STATISTICS, fit_check
from kasmina_trainer.export import parity

Array = npt.NDArray[Any]

PATH = "guard.npz"


@dataclass(frozen=True)
class GuardFrames:
    """Good frames, from which a device learns what looks wrong.

    Attributes:
        frames: In the app's units; more of them than there are statistics.  # (N, H, W, C), (N, L, C) or (N, C)
        labels: Their classes; each has a centre of its own.  # (N,)
        held_out: Other good frames, which set the threshold.  # (M, ...)
        false_alarms: Share of these that may alarm, between 0 and 1.
        output: The network's output that holds the statistics; `adversarial.detector.WithStatistics` gives it one.
    """

    frames: Array
    labels: Array
    held_out: Array
    false_alarms: float = FALSE_ALARMS
    output: str = STATISTICS


def guard_file(
    guard: GuardFrames, model: bytes, fed: tuple[Array, Array], names: Sequence[str]
) -> tuple[InputGuard, bytes]:
    """Fit the guard to a model file.

    Args:
        guard: Labels, share of false alarms and output.
        model: The TFLite file.
        fed: Frames and held-out frames as the model takes them.  # (N, ...), (M, ...)
        names: The network's outputs.

    Raises:
        InputError: No such output, it is the first one of several, or too few frames.
    """
    if guard.output not in names[1:]:
        raise InputError(
            f"guard: output {guard.output!r} is none behind the first of {', '.join(names)}",
            "Export WithStatistics(network, sites) and name its outputs: output_names=('logits', 'statistics').",
        )
    at = list(names).index(guard.output)
    known, others = (parity.litert_outputs(model, x)[at].reshape(len(x), -1) for x in fed)
    data = fit_check(known, np.asarray(guard.labels), others, false_alarms=guard.false_alarms).to_bytes()
    return InputGuard(output=guard.output, file=FileEntry.of(PATH, data)), data
