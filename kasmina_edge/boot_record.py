"""The boot record and every decision about the two slots, as pure functions; `kasmina_edge.slots` does the I/O.

Two copies are written in turn, each with a sequence number and a checksum: the valid one with the highest sequence
counts, so that a torn or missing copy costs at most the last decision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from kasmina_edge.contracts.canonical import canonical_bytes, sha256_hex
from kasmina_edge.errors import InputError

Slot = Literal["a", "b"]
SLOTS: tuple[Slot, Slot] = ("a", "b")
MAX_RECORD_BYTES = 16 * 1024
MAX_QUARANTINE_BYTES = 16 * 1024 * 1024
MAX_REASON_CHARACTERS = 500
MAX_TRIES = 100
PREFIX_CHARACTERS = 12
_FORMAT = 1


@dataclass(frozen=True)
class Failure:
    """Why a bundle was taken back.

    Attributes:
        content_digest: The manifest's `content_digest`; empty where the slot could not be read any more.
        bundle: ``NAME VERSION`` as people say it.
        reason: One sentence with the numbers.
        at_s: Wall clock, seconds since 1970 UTC.
    """

    content_digest: str
    bundle: str
    reason: str
    at_s: float


@dataclass(frozen=True)
class BootRecord:
    """Which slot serves.

    Attributes:
        sequence: Counts up with every record written; 0 means that none was written yet.
        active: The committed slot; None before the first commit.
        trial: The slot being judged; never the active one.
        tries_left: How many starts the trial may still take; 0 when nothing is on trial.
        boot: Counts the agent's starts.
        previous: The slot that an operator can return to; None when it holds something else by now.
        last_failure: The latest bundle that was taken back; it stays until the next failure.
        live: The apps follow the trial slot, because it passed what needs no live frames.
    """

    sequence: int = 0
    active: Slot | None = None
    trial: Slot | None = None
    tries_left: int = 0
    boot: int = 0
    previous: Slot | None = None
    last_failure: Failure | None = None
    live: bool = False

    @property
    def serving(self) -> Slot | None:
        """The slot that apps run now: a live trial, or the active one."""
        return self.trial if self.trial is not None and self.live else self.active

    def names(self, slot: Slot) -> bool:
        """Whether this record needs what the slot holds."""
        return slot in (self.active, self.trial, self.previous)


@dataclass(frozen=True)
class Quarantined:
    """Why, and since when (seconds since 1970 UTC), a content may not be tried here."""

    reason: str
    at_s: float


EMPTY = BootRecord()
_adapter = TypeAdapter(BootRecord)


def encode_record(record: BootRecord) -> bytes:
    """Canonical JSON with a SHA-256 over the record inside."""
    fields = asdict(record)
    return canonical_bytes({"format": _FORMAT, "record": fields, "sha256": sha256_hex(canonical_bytes(fields))}) + b"\n"


def decode_record(data: bytes) -> BootRecord | None:
    """The record in ``data``; None for torn, damaged or contradictory bytes, and for a format not known here."""
    if len(data) > MAX_RECORD_BYTES:
        return None
    try:
        outer = json.loads(data)
        if not isinstance(outer, dict) or outer.get("format") != _FORMAT:
            return None
        fields = outer.get("record")
        if outer.get("sha256") != sha256_hex(canonical_bytes(fields)):
            return None
        record = _adapter.validate_json(canonical_bytes(fields), strict=True)
    except (ValueError, RecursionError, ValidationError):
        return None
    return record if _is_consistent(record) else None


def choose_record(a: bytes | None, b: bytes | None) -> BootRecord | None:
    """The valid one of two copies with the highest sequence.

    Args:
        a: Content of ``boot-0``; None when the file is missing.
        b: Content of ``boot-1``.

    Returns:
        The record, or None when neither copy is valid.
    """
    valid = [r for r in (decode_record(data) for data in (a, b) if data is not None) if r is not None]
    return max(valid, key=lambda r: r.sequence, default=None)


def idle_slot(record: BootRecord) -> Slot:
    """The slot that may be overwritten: never the active one, never one on trial.

    Raises:
        InputError: A trial is going on.
    """
    if record.trial is not None:
        raise InputError(
            f"slot {record.trial} is on trial, so no slot is idle",
            "Wait until the trial is committed or taken back, then try again.",
        )
    return "b" if record.active == "a" else "a"


def release_slot(record: BootRecord, slot: Slot) -> BootRecord:
    """The next record before ``slot`` is overwritten: nothing can return to what it held."""
    return _next(record, previous=None if record.previous == slot else record.previous)


def start_trial(record: BootRecord, slot: Slot, tries: int) -> BootRecord:
    """The next record: ``slot`` is on trial.

    Raises:
        InputError: The slot is active, a trial is going on, or ``tries`` is not 1 to 100.
    """
    if slot not in SLOTS:
        raise InputError(f"slot {slot!r}: expected a or b")
    if not 1 <= tries <= MAX_TRIES:
        raise InputError(f"tries: expected 1 to {MAX_TRIES}, got {tries}")
    if record.trial is not None:
        raise InputError(f"slot {record.trial} is on trial already", "Confirm it or roll it back first.")
    if record.active == slot:
        raise InputError(f"slot {slot} is active already, so there is nothing to try")
    kept = None if record.previous == slot else record.previous
    return _next(record, trial=slot, tries_left=tries, live=False, previous=kept)


def let_live(record: BootRecord) -> BootRecord:
    """The next record: the apps follow the trial slot.

    Raises:
        InputError: Nothing is on trial, or the trial has failed already.
    """
    _require_try(record, _require_trial(record, "made live"))
    return _next(record, live=True)


def let_dark(record: BootRecord) -> BootRecord:
    """The same record with the apps back on the active slot: a trial that was interrupted is judged anew."""
    return replace(record, live=False)


def commit_trial(record: BootRecord) -> BootRecord:
    """The next record: the trial slot is active, and the one before it can be returned to.

    Raises:
        InputError: Nothing is on trial, or the trial has failed already.
    """
    slot = _require_try(record, _require_trial(record, "confirmed"))
    return _next(record, active=slot, trial=None, tries_left=0, live=False, previous=record.active)


def end_trial(record: BootRecord, failure: Failure) -> BootRecord:
    """The next record: the trial is over and failed; the active slot was never touched.

    Raises:
        InputError: Nothing is on trial.
    """
    _require_trial(record, "rolled back")
    return _next(record, trial=None, tries_left=0, live=False, last_failure=failure)


def withdraw_trial(record: BootRecord, failure: Failure) -> BootRecord:
    """The next record: the trial has failed and the apps leave it; it ends once its quarantine could be written.

    Such a trial has no try left before a start was counted; no other has.

    Raises:
        InputError: Nothing is on trial.
    """
    _require_trial(record, "withdrawn")
    return _next(record, tries_left=0, live=False, last_failure=failure)


def return_to_previous(record: BootRecord, failure: Failure | None = None) -> BootRecord:
    """The next record: active and previous change places, by an operator's wish or because the active slot is damaged.

    Raises:
        InputError: A trial is going on, or no previous bundle is kept.
    """
    if record.trial is not None:
        raise InputError(f"slot {record.trial} is on trial; that comes first")
    if record.previous is None:
        raise InputError("no previous bundle is kept on this device", "Deploy the bundle that you want instead.")
    return _next(
        record,
        active=record.previous,
        previous=record.active if failure is None else None,
        last_failure=failure or record.last_failure,
    )


def count_start(record: BootRecord) -> BootRecord:
    """The next record at an agent's start: one boot more, and an interrupted trial has one try less.

    A trial at ``tries_left`` 0 afterwards is out of tries, and the caller ends it.
    """
    left = max(0, record.tries_left - 1) if record.trial is not None else 0
    return _next(record, boot=record.boot + 1, tries_left=left)


def repeat(record: BootRecord) -> BootRecord:
    """The same decision once more, for the other copy: neither copy alone can then take it back by rotting."""
    return _next(record)


def make_failure(content_digest: str, bundle: str, reason: str, at_s: float) -> Failure:
    """A failure whose reason fits the record and is plain UTF-8."""
    return Failure(content_digest, bundle, short_reason(reason), float(at_s))


def short_reason(reason: str) -> str:
    """At most 500 characters of plain UTF-8."""
    plain = reason.encode("utf-8", "replace").decode()
    return plain if len(plain) <= MAX_REASON_CHARACTERS else plain[: MAX_REASON_CHARACTERS - 3] + "..."


def find_quarantined(entries: Mapping[str, Quarantined], named: str) -> str:
    """The one quarantined digest that ``named`` is, or begins with 12 or more characters of.

    Raises:
        InputError: None is, or more than one.
    """
    found = [d for d in entries if d == named or (len(named) >= PREFIX_CHARACTERS and d.startswith(named))]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted(d[:PREFIX_CHARACTERS] for d in entries)) or "nothing"
    raise InputError(f"{named}: names {len(found)} quarantined contents", f"Quarantined here: {listed}.")


def encode_quarantine(entries: Mapping[str, Quarantined]) -> bytes:
    """The quarantine by content digest, as canonical JSON."""
    body = {digest: {"reason": e.reason, "at_s": e.at_s} for digest, e in entries.items()}
    return canonical_bytes({"format": _FORMAT, "entries": body}) + b"\n"


def decode_quarantine(data: bytes) -> dict[str, Quarantined]:
    """The entries of `encode_quarantine`.

    Raises:
        ValueError: Not such bytes.
    """
    if len(data) > MAX_QUARANTINE_BYTES:
        raise ValueError(f"more than {MAX_QUARANTINE_BYTES} bytes")
    try:
        value = json.loads(data)
        if value["format"] != _FORMAT:
            raise ValueError(f"format {value['format']!r}, expected {_FORMAT}")
        return {digest: Quarantined(str(e["reason"]), float(e["at_s"])) for digest, e in value["entries"].items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError(f"not a quarantine: {exc!r}") from exc


def _next(record: BootRecord, **changes: object) -> BootRecord:
    return replace(record, sequence=record.sequence + 1, **changes)  # type: ignore[arg-type]


def _require_trial(record: BootRecord, done: str) -> Slot:
    if record.trial is None:
        raise InputError(f"no slot is on trial, so nothing can be {done}")
    return record.trial


def _require_try(record: BootRecord, slot: Slot) -> Slot:
    if record.tries_left == 0:
        raise InputError(f"slot {slot} has failed its trial", "Roll it back; the next start of the agent does so too.")
    return slot


def _is_consistent(record: BootRecord) -> bool:
    return (
        record.sequence >= 1
        and record.boot >= 0
        and (record.trial is None or record.trial != record.active)
        and (record.previous is None or record.previous not in (record.active, record.trial))
        and 0 <= record.tries_left <= MAX_TRIES
        and (record.trial is not None or (record.tries_left == 0 and not record.live))
    )
