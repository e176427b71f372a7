"""Published networks as tables of layers, so that a profile's anchors can be predicted without anybody's weights."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from functools import lru_cache

from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.workload import Workload

FAMILIES = ("coral", "mlperf_tiny", "model_zoos", "reference")
"""Modules of this folder; each has ``NETWORKS``, name to a function that builds the table."""


def names() -> tuple[str, ...]:
    """Every network that has a table."""
    return tuple(sorted(_makers()))


@lru_cache(maxsize=64)
def table(name: str) -> Workload:
    """A network by its name, as profiles' anchors spell it.

    Raises:
        InputError: No such network; the three nearest names are given.
    """
    makers = _makers()
    if name in makers:
        return makers[name]()
    nearest = difflib.get_close_matches(name, makers, n=3, cutoff=0.0)
    raise InputError(f"no network is called {name!r}", f"Did you mean {', '.join(nearest)}?" if nearest else "")


@lru_cache(maxsize=1)
def _makers() -> Mapping[str, Callable[[], Workload]]:
    found: dict[str, Callable[[], Workload]] = {}
    for family in FAMILIES:
        found.update(importlib.import_module(f"{__name__}.{family}").NETWORKS)
    return found
