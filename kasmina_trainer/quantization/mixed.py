"""Mixed precision: which layers get 4 bits, under a budget of bytes or milliseconds.

Each layer's effect is measured alone (`measure_sensitivity`), and effects are taken to add up: then the best choices
for every size are a Pareto front, found exactly by adding layer after layer and dropping what is dominated (Nemhauser
and Ullmann 1969). Effects do not quite add up, and int4 is not always faster, so what is taken from the front is
measured as a whole: latency by a function that is passed in, accuracy by another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization.sensitivity import Effect, Sensitivities

MOST_STATES = 4000
"""Choices kept while layers are added; beyond, evenly spread ones of the front."""

Bits = dict[str, int]


@dataclass(frozen=True)
class Choice:
    """One assignment of widths.

    Attributes:
        bits: By layer; 8 where a layer is not named.
        saved_bytes: Of weights, against 8 bits everywhere.
        distance: Sum of the layers' own effects.
        latency_ms: Of the whole; None where no function tells it.
        accuracy: Of the whole, measured; None where it was not.
    """

    bits: Mapping[str, int]
    saved_bytes: int
    distance: float
    latency_ms: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Allocation:
    """What was chosen, and what else there was.

    Attributes:
        chosen: The first of the front, from the least distance on, that keeps the budget.
        front: All choices that no other beats in both bytes and distance, least distance first.
    """

    chosen: Choice
    front: tuple[Choice, ...]


def allocate(
    found: Sensitivities,
    *,
    save_bytes: int = 0,
    most_ms: float | None = None,
    most_loss: float | None = None,
    latency_ms: Callable[[Bits], float] | None = None,
    accuracy: Callable[[Bits], float] | None = None,
) -> Allocation:
    """The gentlest choice of widths that keeps the budget. Deterministic.

    Args:
        found: What each layer does at each width.
        save_bytes: Bytes of weights to save against 8 bits everywhere.
        most_ms: Longest latency.
        most_loss: Largest loss of accuracy against the float network, a share of 1.
        latency_ms: Latency of a choice, e.g. by the hardware simulator; asked for with ``most_ms``.
        accuracy: Accuracy of a choice on held-out inputs; asked for with ``most_loss``.

    Raises:
        InputError: A budget without the function that measures it, or one that no choice keeps; the message carries
            the budget and the best that was found.
    """
    if (most_ms is None) != (latency_ms is None) or (most_loss is None) != (accuracy is None):
        raise InputError("mixed precision: a budget of time or accuracy comes with the function that measures it")
    choices = front(found.effects)
    tried: list[Choice] = []
    for choice in choices:
        if choice.saved_bytes < save_bytes:
            continue
        bits = dict(choice.bits)
        time = None if latency_ms is None else latency_ms(bits)
        if most_ms is not None and time is not None and time > most_ms:
            tried.append(Choice(choice.bits, choice.saved_bytes, choice.distance, time))
            continue
        right = None if accuracy is None else accuracy(bits)
        measured = Choice(choice.bits, choice.saved_bytes, choice.distance, time, right)
        if right is None or most_loss is None or (found.float_accuracy or 0.0) - right <= most_loss:
            return Allocation(measured, choices)
        tried.append(measured)
    raise InputError(*_unkept(found, choices, tried, save_bytes, most_ms, most_loss))


def front(effects: Sequence[Effect]) -> tuple[Choice, ...]:
    """All choices of widths that no other beats in both bytes and distance, least distance first.

    Args:
        effects: At most one a layer and width. A negative distance counts as none: it is luck.
    """
    layers: dict[str, list[Effect]] = {}
    for effect in effects:
        if effect.saved_bytes > 0:
            layers.setdefault(effect.layer, []).append(effect)
    states: list[tuple[int, float, tuple[tuple[str, int], ...]]] = [(0, 0.0, ())]
    for name in layers:
        grown = list(states)
        for effect in layers[name]:
            cost = max(effect.distance, 0.0)
            grown += [(s + effect.saved_bytes, d + cost, (*b, (name, effect.bits))) for s, d, b in states]
        states = _thinned(_undominated(grown))
    return tuple(Choice(dict(bits), saved, distance) for saved, distance, bits in states)


def _undominated(
    states: list[tuple[int, float, tuple[tuple[str, int], ...]]],
) -> list[tuple[int, float, tuple[tuple[str, int], ...]]]:
    kept: list[tuple[int, float, tuple[tuple[str, int], ...]]] = []
    most = -1
    for state in sorted(states, key=lambda s: (s[1], -s[0], s[2])):
        if state[0] > most:
            most = state[0]
            kept.append(state)
    return kept


def _thinned(
    states: list[tuple[int, float, tuple[tuple[str, int], ...]]],
) -> list[tuple[int, float, tuple[tuple[str, int], ...]]]:
    if len(states) <= MOST_STATES:
        return states
    last = len(states) - 1
    return [states[round(i * last / (MOST_STATES - 1))] for i in range(MOST_STATES)]


def _unkept(
    found: Sensitivities,
    choices: Sequence[Choice],
    tried: Sequence[Choice],
    save_bytes: int,
    most_ms: float | None,
    most_loss: float | None,
) -> tuple[str, str]:
    most = max(choice.saved_bytes for choice in choices)
    if most < save_bytes:
        return (
            f"mixed precision: {save_bytes} bytes to save, 4 bits in every layer that can have them save {most}",
            "Prune the network, or widen the budget.",
        )
    times = [c.latency_ms for c in tried if c.latency_ms is not None]
    if most_ms is not None and times and min(times) > most_ms:
        return (
            f"mixed precision: at most {most_ms:g} ms, the fastest of {len(times)} choices takes {min(times):g} ms",
            "4-bit weights save bytes and seldom time: prune the network, or choose another target.",
        )
    best = max((c.accuracy for c in tried if c.accuracy is not None), default=0.0)
    lost = (found.float_accuracy or 0.0) - best
    return (
        f"mixed precision: at most {most_loss or 0:.2%} of accuracy may be lost, the best of {len(tried)} choices "
        f"loses {lost:.2%}",
        "Train against the rounding (method qat), or widen the budget.",
    )
