"""Telemetry and the messages between device and controller. Unknown fields are ignored: old readers meet new writers.

A value of None means *not measured*; zero is a measurement. Contracts with measured bits say it twice, by a bit a value
and by its absence, and a message in which the two disagree is refused. Formulas: docs/spec/telemetry.md.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, computed_field, model_serializer, model_validator

from kasmina_edge.contracts.canonical import Contract, canonical_bytes
from kasmina_edge.errors import InputError, KasminaError

DeviceId = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
Status = Literal[
    "idle", "downloading", "installing", "trial", "committed", "rolled_back", "refused", "unreachable", "failed"
]


Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]  # what JSON readers and SQLite hold exactly
MAX_COUNT = 2**53
MAX_SKETCH_CHARACTERS = 16_384
MAX_SEEDS = 256
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
EntryHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TraceId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
AlertKind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
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


class _Measured(_Message):
    """Values of which each may be not measured.

    Attributes:
        BITS: Names of the measured values; the bit of each is its place here. Names are only ever added at the end.
        measured: Bit mask of the values that are there. On the wire it is held against them: a value without its bit,
            or a bit without its value, is refused. Bits of names not known here are ignored, as unknown fields are.
    """

    BITS: ClassVar[tuple[str, ...]] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def measured(self) -> int:
        """Bit mask of the values that are there."""
        return sum(1 << bit for bit, name in enumerate(self.BITS) if getattr(self, name) is not None)

    def is_measured(self, name: str) -> bool:
        """Whether this value was measured.

        Raises:
            InputError: No such value.
        """
        if name not in self.BITS:
            raise InputError(f"{type(self).__name__} has no value {name!r}; it has {', '.join(self.BITS)}")
        return getattr(self, name) is not None

    @model_validator(mode="before")
    @classmethod
    def _bits_and_values_agree(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("measured") is None:
            return value
        said = value["measured"]
        if type(said) is not int or said < 0:
            raise ValueError(f"measured is a bit mask, got {said!r}")
        for bit, name in enumerate(cls.BITS):
            if bool(said >> bit & 1) != (value.get(name) is not None):
                told = "measured and is missing" if said >> bit & 1 else "not measured and is there"
                raise ValueError(f"measured {said}: bit {bit} says that {name} was {told}")
        return value

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class HardwareContext(_Measured):
    """What the device's hardware and this process were doing; telemetry/hardware.py reads it.

    Attributes:
        latency_us: Median latency of the window's inferences; ``latency_p99_us`` their 99th percentile.
        rss_bytes: Resident memory of this process; ``pss_bytes`` with shared pages counted by their share.
        available_bytes: What the kernel says new programs may still take.
        temperature_c: The hottest thermal zone, degrees Celsius.
        accelerator_temperature_c: The hottest Edge TPU, degrees Celsius.
        throttled: The clock is held down right now, for heat or for lack of power.
        under_voltage: The supply is too weak right now.
        frequency_share: Clock of the slowest core over its highest, of 1.
        energy_uj: Energy an inference since the record before that said it; ``energy_how`` where it comes from:
            ``measured: ...`` or ``profile NAME: ...``.
    """

    BITS: ClassVar[tuple[str, ...]] = (
        "latency_us", "latency_p99_us", "rss_bytes", "pss_bytes", "available_bytes", "temperature_c",
        "accelerator_temperature_c", "throttled", "under_voltage", "frequency_share", "energy_uj",
    )  # fmt: skip

    latency_us: Annotated[float, Field(ge=0)] | None = None
    latency_p99_us: Annotated[float, Field(ge=0)] | None = None
    rss_bytes: Count | None = None
    pss_bytes: Count | None = None
    available_bytes: Count | None = None
    temperature_c: float | None = None
    accelerator_temperature_c: float | None = None
    throttled: bool | None = None
    under_voltage: bool | None = None
    frequency_share: Annotated[float, Field(ge=0)] | None = None
    energy_uj: Annotated[float, Field(ge=0)] | None = None
    energy_how: Annotated[str, Field(max_length=120)] | None = None


class BudgetLeft(_Measured):
    """What the change plan still allows; a negative value is overdrawn (the plan shrank under what runs).

    Attributes:
        parameters: Graft parameters.
        latency_us: Between the plan's ceiling and the median latency.
        capture_frames: Frames that may still be captured; ``capture_bytes`` their sealed bytes, ``capture_days`` the
            days left to do it in.
    """

    BITS: ClassVar[tuple[str, ...]] = ("parameters", "latency_us", "capture_frames", "capture_bytes", "capture_days")

    parameters: Whole | None = None
    latency_us: float | None = None
    capture_frames: Whole | None = None
    capture_bytes: Whole | None = None
    capture_days: float | None = None


class SafetyScores(_Measured):
    """What the device's own judges say.

    Attributes:
        drift: As `TelemetryRecord`: 1 is the alarm line.
        self_test: Share of the bundle's self-test vectors answered within tolerance.
        probe_accuracy: Share of the reference probes answered rightly when the bundle was judged here.
        check_accuracy: Share of the window's check frames answered rightly.
        alert: 0 nothing stands, 1 a warning, 2 a critical alert.
    """

    BITS: ClassVar[tuple[str, ...]] = ("drift", "self_test", "probe_accuracy", "check_accuracy", "alert")

    drift: float | None = None
    self_test: Annotated[float, Field(ge=0, le=1)] | None = None
    probe_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    check_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    alert: Annotated[int, Field(ge=0, le=2)] | None = None


class SeedTelemetry(_Measured):
    """One seed site of a bundle, or the whole model (``site`` is empty). The trainer emits the same record.

    A record on the wire says hardware once for all, and budget and safety with the model alone:
    `kasmina_edge.telemetry.seed_rows.completed` writes them into every row.

    Attributes:
        site: The seed site's name; empty for the whole model.
        blueprint: What is grafted there; None where nothing is.
        looks: Sampled frames behind the figures.
        reason: Why the inside was not measured; None where it was. It stands with the model.
        activation_variance: Variance of the site's output over frames and positions, mean over channels, squared units.
        interface_drift: 1 - cosine of the site's input and output, mean over frames, 0 to 2.
        weights_l1: Sum of the absolute weights of the branch, in real units.
        mean_output: Mean absolute value of what the branch adds, in real units.
        contribution: How far the answers move when the graft is silenced, 0 to 1.
        utilization: The documented mean of three shares, 0 to 1.
        age_s: Seconds since the bundle was committed on this device; in the trainer, since the graft was grown.
        gradient_norm: Euclidean norm of the last gradient of the branch's weights; a device, which does not learn,
            never measures it.
    """

    BITS: ClassVar[tuple[str, ...]] = (
        "activation_variance", "interface_drift", "weights_l1", "mean_output", "contribution", "utilization", "age_s",
        "budget", "hardware", "safety", "gradient_norm",
    )  # fmt: skip

    site: Annotated[str, Field(max_length=128)] = ""
    blueprint: Annotated[str, Field(max_length=64)] | None = None
    looks: Count = 0
    reason: Annotated[str, Field(max_length=200)] | None = None
    activation_variance: Annotated[float, Field(ge=0)] | None = None
    interface_drift: Annotated[float, Field(ge=0, le=2)] | None = None
    weights_l1: Annotated[float, Field(ge=0)] | None = None
    mean_output: Annotated[float, Field(ge=0)] | None = None
    contribution: Annotated[float, Field(ge=0, le=1)] | None = None
    utilization: Annotated[float, Field(ge=0, le=1)] | None = None
    age_s: Annotated[float, Field(ge=0)] | None = None
    budget: BudgetLeft | None = None
    hardware: HardwareContext | None = None
    safety: SafetyScores | None = None
    gradient_norm: Annotated[float, Field(ge=0)] | None = None


class AcceleratorReport(_Message):
    """How the accelerator did since the report before.

    Attributes:
        runs_on: Who answers now, as people read it.
        events: How often each happened, by kind ("hang", "crash", "wrong", "slow", "gone", "back").
        cause: The last one's reason.
    """

    runs_on: Annotated[str, Field(max_length=64)] = ""
    events: dict[Annotated[str, Field(max_length=32)], Count] = {}
    cause: Annotated[str, Field(max_length=200)] = ""


Sketch = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]*$", max_length=MAX_SKETCH_CHARACTERS)]


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
        latency_sketch: `telemetry.sketch.LogHistogram` of every latency since the record that carried one before, in
            microseconds; ``score_sketch`` of the sampled top scores. Sketches add up over windows, devices and fleets.
        hardware: What changes slowly comes, like the sketches, with one record in many.
        seeds: The whole model first, then every seed site.
        accelerator: Only where there is one to report about.
        simulated: Whose time was predicted for these latencies, e.g. ``simulated coral-usb``; None: they are real.
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
    latency_sketch: Sketch | None = None
    score_sketch: Sketch | None = None
    hardware: HardwareContext | None = None
    seeds: Annotated[tuple[SeedTelemetry, ...], Field(max_length=MAX_SEEDS)] | None = None
    accelerator: AcceleratorReport | None = None
    simulated: Annotated[str, Field(max_length=64)] | None = None

    def to_bytes(self) -> bytes:
        """Canonical bytes; the slow-changing parts are written only where they are there."""
        absent = {name for name in _NOW_AND_THEN if getattr(self, name) is None}
        return canonical_bytes(self.model_dump(mode="json", exclude=absent))


_NOW_AND_THEN = ("latency_sketch", "score_sketch", "hardware", "seeds", "accelerator", "simulated")


class _Lived(_Message):
    """A message of a data folder; what is not known of ``_LATER`` is not written: old bytes stay as they are."""

    _LATER: ClassVar[tuple[str, ...]] = ("life",)

    life: LifeId = ""

    def to_bytes(self) -> bytes:
        return canonical_bytes(self.model_dump(mode="json", exclude={n for n in self._LATER if not getattr(self, n)}))


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
    """What the device really runs, retained; ``status`` and ``reason`` speak of the last update; ``life`` as above.

    Attributes:
        audit_seq: Sequence number of the device's newest audit entry, and ``audit_hash`` its hash: within one life the
            sequence never falls, and a sequence number never has two hashes.
        trace_id: The trace of the last update, see `kasmina_edge.logs`.
    """

    _LATER: ClassVar[tuple[str, ...]] = ("life", "audit_seq", "audit_hash", "trace_id")

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
    audit_seq: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    audit_hash: EntryHash | None = None
    trace_id: TraceId | None = None


class DeviceAlert(_Lived):
    """A device says that something was raised, or is over; on topic ``t/alert``, never retained.

    Attributes:
        kind: What it is about, e.g. ``disk``; a reader shows kinds it does not know.
        state: ``raised`` or ``cleared``.
        sequence: Counts up with every alert of a life: of two about the same kind the higher one holds.
        message: One sentence with both numbers.
        value: What was measured, in the message's unit; None when it is about an event.
        limit: What it was compared with.
        trace_id: The update it belongs to, if any.
    """

    _LATER: ClassVar[tuple[str, ...]] = ("life", "trace_id")

    format: Literal[1] = 1
    device: DeviceId
    boot: Whole = 0
    sequence: Count
    at_s: float
    kind: AlertKind
    state: Literal["raised", "cleared"]
    severity: Literal["warning", "critical"] = "warning"
    message: Annotated[str, Field(max_length=1000)] = ""
    value: float | None = None
    limit: float | None = None
    trace_id: TraceId | None = None


class Desired(_Message):
    """A nudge that something new may be there; what to install is read from signed metadata, never from this."""

    release: Whole
    at_s: float | None = None
