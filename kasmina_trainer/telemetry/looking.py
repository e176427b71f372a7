"""How a collector gets to see a pass: taps at sites, hooks at the network, state of each thread, rows of a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kasmina_trainer.blueprints.port import Layout

Array = npt.NDArray[Any]
See = Callable[[str, torch.Tensor, "torch.Tensor | None", torch.Tensor], torch.Tensor]


class SiteTap:
    """The tap of one site. A copy of the network is looked at by nobody: this copies and pickles as None."""

    def __init__(self, see: See, site: str, looks: Callable[[], bool]) -> None:
        self._see, self._site, self._looks = see, site, looks

    @property
    def looks(self) -> bool:
        """Whether this pass is looked at, or changed; else it may flow as if nobody stood here."""
        return self._looks()

    def __call__(self, entry: torch.Tensor, added: torch.Tensor | None, grown: torch.Tensor) -> torch.Tensor:
        """What flows on."""
        return self._see(self._site, entry, added, grown)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())


class PassHook:
    """A hook of the network's forward pass that looks and changes nothing; its copies and pickles do nothing."""

    def __init__(self, look: Callable[..., None]) -> None:
        self._look = look

    def __call__(self, *args: Any) -> None:
        """Look."""
        self._look(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> PassHook:
        return blind()

    def __reduce__(self) -> tuple[Any, ...]:
        return (blind, ())


def blind() -> PassHook:
    """A hook that does nothing."""
    return PassHook(_nothing)


def _nothing(*_: Any) -> None:
    return None


class Thread(threading.local):
    """What one thread is in the middle of.

    Attributes:
        seen: What its pass gave so far: site, entry, added, leave; None: this pass is not looked at.
        inputs: The rows of the batch that are looked at.
        silenced: Sites whose grafts add nothing in this thread; None: none, and passes count.
    """

    seen: list[tuple[str, Any, Any, Any]] | None = None
    inputs: Array = np.empty(0, np.float32)
    silenced: frozenset[str] | None = None


def picked(batch: torch.Tensor, most: int) -> Array:
    """At most so many rows of a batch, evenly spaced, as a copy.  # (N, ...) to (n, ...)"""
    rows = _rows(len(batch), most).to(batch.device) if batch.ndim else None
    values = batch.detach().reshape(1) if rows is None else batch.detach().index_select(0, rows)
    return np.asarray(values.float().cpu().numpy())


@lru_cache(maxsize=64)
def _rows(count: int, most: int) -> torch.Tensor:
    return torch.from_numpy(np.unique(np.linspace(0, max(0, count - 1), min(count, most)).astype(np.int64)))


def frames_of(rows: Array, layout: Layout) -> Array:
    """The rows with the channels last, as a device sees them."""
    if layout is Layout.IMAGE and rows.ndim == 4:
        return rows.transpose(0, 2, 3, 1)
    return rows.transpose(0, 2, 1) if layout is Layout.SERIES and rows.ndim == 3 else rows
