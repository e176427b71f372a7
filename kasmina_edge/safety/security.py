"""Security alerts: what an error, a clock or an audit log has to show before somebody is told of an attack.

Pure functions: they take what happened and give a `Breach`, or None where nothing speaks of an attack. A refusal by
plan, a lost link or a full disk is no breach.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from kasmina_edge.errors import BundleError, KasminaError, TrustError
from kasmina_edge.safety.audit import AuditReport, Head

SecurityKind = Literal[
    "bad_signature", "replay", "expired", "tamper", "malformed", "clock_jump", "audit_regress", "new_life"
]
SECURITY_KINDS: tuple[SecurityKind, ...] = get_args(SecurityKind)
"""A controller keeps these until an operator acknowledges them, whatever the device says afterwards."""

SECURITY_SEVERITY: Mapping[str, Literal["warning", "critical"]] = MappingProxyType(
    {
        "bad_signature": "critical",
        "replay": "critical",
        "expired": "warning",
        "tamper": "critical",
        "malformed": "critical",
        "clock_jump": "warning",
        "audit_regress": "critical",
        "new_life": "warning",
    }
)
CLOCK_JUMP_S = 5.0
_OF_TRUST: Mapping[str, SecurityKind] = MappingProxyType(
    {
        "signature": "bad_signature",
        "replay": "replay",
        "expired": "expired",
        "tamper": "tamper",
        "malformed": "malformed",
    }
)


class Breach(NamedTuple):
    """Something that looks like an attack: its kind, and one sentence with both numbers."""

    kind: SecurityKind
    message: str


def breach_of(error: KasminaError) -> Breach | None:
    """What an error during an update or a deployment says of its sender.

    >>> breach_of(TrustError("0 of 1 valid signatures of role grafts", breach="signature")).kind
    'bad_signature'
    """
    kind = _OF_TRUST.get(error.breach or "") if isinstance(error, TrustError) else None
    return None if kind is None else Breach(kind, error.message)


def breach_of_file(error: KasminaError) -> Breach | None:
    """What an error about a file that this device had verified and installed says: it was changed since.

    Rot and attack look alike from inside, so both are told. A disk that cannot be read is no breach.
    """
    return Breach("tamper", error.message) if isinstance(error, BundleError | TrustError) else None


class ClockReading(NamedTuple):
    """Both clocks at one moment: the wall clock, and one that only runs.

    Take ``time.clock_gettime(time.CLOCK_BOOTTIME)`` for the second: it goes on while the machine sleeps.
    """

    wall_s: float
    running_s: float


def clock_jump(before: ClockReading, now: ClockReading, limit_s: float = CLOCK_JUMP_S) -> Breach | None:
    """Whether the wall clock was set between two readings, by more than ``limit_s`` seconds.

    The first good time of a device without a battery is such a jump too; an agent leaves it out by not comparing with
    readings from before `kasmina_edge.telemetry.outbox.CLOCK_WAS_SET_S`.

    >>> clock_jump(ClockReading(1000.0, 10.0), ClockReading(4610.0, 20.0)).message
    'the wall clock was set forward by 3600 s within 10 s; 5 s are tolerated'
    """
    passed_s = now.running_s - before.running_s
    jump_s = (now.wall_s - before.wall_s) - passed_s
    if passed_s < 0 or abs(jump_s) <= limit_s:
        return None
    way = "forward" if jump_s > 0 else "back"
    return Breach(
        "clock_jump",
        f"the wall clock was set {way} by {abs(jump_s):.0f} s within {passed_s:.0f} s; {limit_s:g} s are tolerated",
    )


def breach_of_audit(report: AuditReport, anchor: Head | None) -> Breach | None:
    """What the check of the audit log at start says.

    Args:
        report: ``verify(log, remembered=anchor)``.
        anchor: What the floor file remembers.
    """
    if report.ok:
        return None
    have = report.head.seq if report.head else 0
    known = f"; the floor knows entry {anchor.seq} {anchor.hash[:12]}" if anchor else ""
    return Breach("audit_regress", f"audit log, {have} entries in order: {report.reason}{known}")


def audit_conflict(known: Mapping[int, str], seq: int, entry_hash: str, prev: str | None = None) -> str | None:
    """Whether a device's word about its audit log contradicts what it said before, within one life.

    Args:
        known: Hashes by sequence number, as the device told them earlier.
        seq: The entry it now calls its newest, or sends.
        entry_hash: That entry's hash.
        prev: Hash of the entry before, where the device says it.

    Returns:
        One sentence with both numbers, or None.

    >>> audit_conflict({7: "a" * 64}, 7, "b" * 64)
    'entry 7 was aaaaaaaaaaaa and is now bbbbbbbbbbbb: the log was rewritten'
    """
    if known.get(seq, entry_hash) != entry_hash:
        return f"entry {seq} was {known[seq][:12]} and is now {entry_hash[:12]}: the log was rewritten"
    if prev is not None and known.get(seq - 1, prev) != prev:
        return f"entry {seq} follows {prev[:12]}, entry {seq - 1} was {known[seq - 1][:12]}: the log was rewritten"
    return None
