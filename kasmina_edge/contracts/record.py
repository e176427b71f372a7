"""Telemetry and the messages between device and controller. Unknown fields are ignored: old readers meet new writers.

A value of None means *not measured*; zero is a measurement.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kasmina_edge.contracts.canonical import Contract, canonical_bytes
from kasmina_edge.errors import InputError, KasminaError

DeviceId = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
Status = Literal[
    "idle", "downloading", "installing", "trial", "committed", "rolled_back", "refused", "unreachable", "failed"
]


Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]  # what JSON readers and SQLite hold exactly
MAX_COUNT = 2**53
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
LifeId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,64}$")]
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    """``text`` for a terminal: each control character (C0, DEL, C1) becomes U+FFFD, so that it can steer nothing.

    >>> printable("a" + chr(27) + "[2Jb")
    'a�[2Jb'
    """
    return text.translate(_CONTROLS)


class _Message(Contract):
    @classmethod
    def error_type(cls) -> type[KasminaError]:
        return InputError


class Summary(_Message):
    """Moments of one quantity over a window."""

    count: Count
    mean: float
    variance: Annotated[float, Field(ge=0)]
    minimum: float
    maximum: float


class TelemetryRecord(_Message):
    """What one app process saw in one window.

    Attributes:
        sequence: Counts up a process; with ``boot`` and ``source`` it names the record.
        started_s: Wall clock at the window's start, seconds since 1970 UTC.
        frames: Inferences in the window; ``sampled`` of them were looked at for statistics.
        input: Moments of the sampled inputs' means; features holds each drift feature's window mean.
        score: Moments of the sampled top scores.
        latency_us: Quantiles of every inference of the window by name ("p50", "p99", "max").
        drift: Distance to the nearest reference domain, in units of that domain's threshold (1 = at the alarm line).
        check_frames: Known scenes seen, and how many were answered rightly.
    """

    format: Literal[1] = 1
    device: DeviceId
    bundle: str
    release: Whole
    slot: Literal["a", "b", "-"] = "-"
    trial: bool = False
    source: str = "app"
    boot: Whole = 0
    sequence: Whole
    started_s: float
    duration_s: Annotated[float, Field(ge=0)]
    frames: Count
    sampled: Count
    input: Summary | None = None
    score: Summary | None = None
    features: dict[str, float] | None = None
    latency_us: dict[str, float] | None = None
    labels: dict[str, Whole] | None = None
    drift: float | None = None
    drift_domain: str | None = None
    check_frames: Count = 0
    check_correct: Count = 0
    dropped_records: Count = 0


class _Lived(_Message):
    """A message of a data folder; an empty ``life`` is not written, which keeps the bytes of those who know of none."""

    life: LifeId = ""

    def to_bytes(self) -> bytes:
        return canonical_bytes(self.model_dump(mode="json", exclude=set() if self.life else {"life"}))


class DeviceState(_Lived):
    """Birth and will, retained: with the boot counter a late will of an earlier start is told from the present one.

    Attributes:
        life: A random id made once a data folder; boot counters compare within one life. Empty: not known.
    """

    device: DeviceId
    online: bool
    boot: Whole
    at_s: float | None = None


class Reported(_Lived):
    """What the device really runs, retained; ``status`` and ``reason`` speak of the last update; ``life`` as above."""

    device: DeviceId
    boot: Whole
    sequence: Whole
    at_s: float
    name: str | None = None
    version: str | None = None
    release: Whole | None = None
    digest: str | None = None
    previous: str | None = None
    status: Status = "idle"
    reason: str = ""
    offered: str | None = None
    grafts: tuple[str, ...] = ()
    update_bytes: dict[str, Whole] | None = None
    update_seconds: float | None = None
    clock_ok: bool = True
    engine: str | None = None


class Desired(_Message):
    """A nudge that something new may be there; what to install is read from signed metadata, never from this."""

    release: Whole
    at_s: float | None = None
