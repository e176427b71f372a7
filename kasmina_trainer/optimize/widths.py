"""Mixed precision for a search: which layers bear 4 bits is measured once, and a few choices are offered."""

from __future__ import annotations

from collections.abc import Sequence

from kasmina_trainer.optimize.building import MOST_CALIBRATION_FRAMES, Task
from kasmina_trainer.optimize.recipes import Offer, mixed
from kasmina_trainer.optimize.samples import thinned
from kasmina_trainer.quantization.calibration import calibrated
from kasmina_trainer.quantization.config import QuantizeConfig
from kasmina_trainer.quantization.folding import folded_graph
from kasmina_trainer.quantization.mixed import Choice, front
from kasmina_trainer.quantization.sensitivity import measure_sensitivity
from kasmina_trainer.quantization.simulation import observe_points, rounding_points

SHARES = (0.25, 0.5, 0.75)
"""Shares of all that 4 bits can save, for which a choice is offered."""
MOST_JUDGED = 256


def mixed_offers(task: Task, like: QuantizeConfig) -> tuple[Offer, ...]:
    """The gentlest choices that save a quarter, half and three quarters of what 4 bits can.

    Args:
        task: Network and data; sensitivity is measured on frames that calibrate, never on those that judge.
        like: How everything else is quantized.

    Raises:
        InputError: The network cannot be traced.
    """
    graph = folded_graph(task.module)
    frames = thinned(task.learn, MOST_CALIBRATION_FRAMES)
    seen = observe_points(graph, frames, rounding_points(graph, frames))
    ranges = calibrated(seen, like, border=())
    labels = None if task.learn_labels is None else thinned(task.learn_labels, MOST_JUDGED)
    found = measure_sensitivity(graph, ranges, thinned(task.learn, MOST_JUDGED), labels)
    choices = front(found.effects)
    return tuple(
        Offer(mixed(f"mixed 4/8, {share:.0%}", choice.bits, like), f"4 bits in {len(choice.bits)} layers that bear it")
        for share, choice in _picked(choices)
    )


def _picked(choices: Sequence[Choice]) -> list[tuple[float, Choice]]:
    """The first choice of the front that saves each share; none twice, and not the one with 4 bits everywhere."""
    most = max((choice.saved_bytes for choice in choices), default=0)
    found: list[tuple[float, Choice]] = []
    for share in SHARES:
        choice = next((c for c in choices if c.saved_bytes >= share * most), None)
        if choice is not None and 0 < choice.saved_bytes < most and choice not in [c for _, c in found]:
            found.append((share, choice))
    return found
