"""One thing that the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail", "absent"]
Area = Literal["engines", "Edge TPU", "libraries", "machine", "data folder", "service"]
AREAS: tuple[Area, ...] = ("engines", "Edge TPU", "libraries", "machine", "data folder", "service")


@dataclass(frozen=True)
class Finding:
    """A value with its cause and what to do about it.

    Attributes:
        id: Stable name for machines, e.g. ``edgetpu.usb.port``.
        area: Where it is shown.
        level: ``ok``; ``warn``: works worse than it could; ``fail``: does not work; ``absent``: not there, which may
            be as it should.
        found: What is the case, in a few words.
        cause: Why, where that helps.
        next_step: One line to run or to do; empty where nothing has to be done.
    """

    id: str
    area: Area
    level: Level
    found: str
    cause: str = ""
    next_step: str = ""
