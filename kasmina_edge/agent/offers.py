"""Is an offer news? A pure function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kasmina_edge.contracts.manifest import BundleManifest


@dataclass(frozen=True)
class Decision:
    """What to do with an offer, and why."""

    action: Literal["nothing", "refuse", "install"]
    reason: str = ""


def decide_offer(
    offered: BundleManifest | None, active: BundleManifest | None, *, refused: str | None = None
) -> Decision:
    """Whether an offer is news.

    Args:
        offered: What the director wants here; None when it wants nothing.
        active: What runs here.
        refused: Why the plan, the floor or the quarantine forbids it; None when they do not.
    """
    if offered is None:
        return Decision("nothing", "no bundle is assigned to this device")
    if active is not None and offered.digest() == active.digest():
        return Decision("nothing", "up to date")
    if refused is not None:
        return Decision("refuse", refused)
    return Decision("install")
