"""A layer's figures brought to a board's own speed by what its anchors took."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from kasmina_edge.contracts.profile import Anchor, HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.networks import names, table
from kasmina_edge.hardware_simulator.workload import Workload

MOST_APART = 1e9
"""Between a published latency and what a layer tells before any factor."""
NUMBERS = ("float32", "int8")
"""What an anchor's name may end in: the same network in another type of number."""


@lru_cache(maxsize=128)
def anchor_network(name: str) -> Workload | None:
    """The table that an anchor means, or None: there is none of this name.

    >>> anchor_network("mobilenet-v1-float32").dtypes, anchor_network("somebody's own") is None
    (('float32',), True)
    """
    known = names()
    if name in known:
        return table(name)
    plain, _, numbers = name.rpartition("-")
    if plain not in known or numbers not in NUMBERS:
        return None
    work = table(plain)
    ops = tuple(replace(op, dtype=numbers, weights_dtype=numbers if op.weights else "") for op in work.ops)
    return replace(work, name=name, ops=ops, tensors=tuple(replace(t, dtype=numbers) for t in work.tensors))


def known_anchors(profile: HardwareProfile) -> tuple[tuple[Anchor, Workload], ...]:
    """The anchors whose network has a table, with it."""
    pairs = ((anchor, anchor_network(anchor.network)) for anchor in profile.anchors)
    return tuple((anchor, work) for anchor, work in pairs if work is not None)


def anchor_scale(profile: HardwareProfile, latency_ms: Callable[[Workload], float]) -> float | None:
    """Factor on a layer's own figures: geometric mean of published over told; None without an anchor that has a table.

    Args:
        profile: Its anchors.
        latency_ms: What the layer tells before any factor.

    Raises:
        InputError: The profile's own numbers give no time for an anchor's network, or one beyond all measure.
    """
    logs = []
    for anchor, work in known_anchors(profile):
        told = latency_ms(work)
        ratio = anchor.latency_ms / told if told > 0.0 else 0.0
        if not MOST_APART > ratio > 1.0 / MOST_APART:
            raise InputError(
                f"profile {profile.name}: anchor {anchor.network} took {anchor.latency_ms:g} ms, its coefficients and "
                f"clock tell {told:g} ms: no factor brings them together",
                "Correct the anchor's latency_ms, the coefficients or clock_mhz.",
            )
        logs.append(math.log(ratio))
    return math.exp(sum(logs) / len(logs)) if logs else None


def anchor_power_mw(profile: HardwareProfile) -> float | None:
    """Mean power while it infers, of the anchors that give energy; None where none does. 1 uJ / 1 ms = 1 mW."""
    powers = [anchor.energy_uj / anchor.latency_ms for anchor in profile.anchors if anchor.energy_uj is not None]
    return sum(powers) / len(powers) if powers else None
