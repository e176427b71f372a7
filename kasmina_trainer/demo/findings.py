"""What the demo measured, as plain values; the table, the page and `findings.json` are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Step:
    """One step as it went."""

    name: str
    seconds: float = 0.0
    note: str = ""


@dataclass
class Findings:
    """Everything that was measured; shares are 0 to 1, sizes bytes, times seconds."""

    seed: int
    steps: list[Step] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    drift: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    update_bytes: dict[str, int] = field(default_factory=dict)
    grafts: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
