"""What a row of the fleet store says: a row that cannot be read is logged, and costs only its part of one device."""

from __future__ import annotations

import json
import logging
import math
from hashlib import blake2b
from typing import TypeVar

from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.contracts.record import MAX_COUNT, DeviceState, Reported, TelemetryRecord
from kasmina_edge.errors import KasminaError
from kasmina_edge.fleet.monitor import DeviceView, WindowView
from kasmina_edge.telemetry.publisher import decode_batch

log = logging.getLogger(__name__)

NAME_BYTES = 8
C = TypeVar("C", bound=Contract)


def view_of(row: tuple[str, float, bytes, bytes, bytes, str], expected: dict[str, float]) -> DeviceView:
    """What is known of one device; a part that cannot be read is logged and shown as not known."""
    device, heard_s, state_text, reported_text, latest_text, windows = row
    state, reported = load_row(DeviceState, state_text, device), load_row(Reported, reported_text, device)
    latest = load_row(TelemetryRecord, latest_text, device)
    names = [latest.bundle] if latest else []
    if reported is not None and (latest is None or latest.bundle == reported.digest):
        names.append(f"{reported.name} {reported.version}")
    return DeviceView(
        device=device,
        online=state.online if state else None,
        boot=state.boot if state else None,
        reported=reported,
        last_heard_s=heard_s,
        latest=latest,
        windows=tuple(read_windows(windows, device)),
        expected_accuracy=next((expected[n] for n in names if n in expected), None),
    )


def load_row(contract: type[C], text: bytes | None, device: str) -> C | None:
    """A stored contract; None where there is none, or where it cannot be read, which is logged."""
    if text is None:
        return None
    try:
        return contract.from_bytes(text, where=f"stored {contract.__name__} of {device}")
    except (KasminaError, TypeError) as exc:  # TypeError: SQLite holds another type than the column says
        log.warning("left out: %s", exc)
        return None


def read_batch(device: str, body: bytes) -> list[TelemetryRecord]:
    """The records of one stored batch; none where it cannot be read, which is logged."""
    try:
        return decode_batch(body)
    except (KasminaError, TypeError) as exc:
        log.warning("left out: stored telemetry of %s: %s", device, exc)
        return []


def read_windows(text: str | None, device: str) -> list[WindowView]:
    """The windows of one device, oldest first; none where they cannot be read, which is logged."""
    if text is None:
        return []
    try:
        return [_window(row) for row in json.loads(text)]
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        log.warning("left out: stored windows of %s: %s", device, exc)
        return []


def _window(row: object) -> WindowView:
    """One stored window.

    Raises:
        ValueError: It is not one.
    """
    match row:
        case [str(bundle), int(release), None | int() | float() as drift, int(frames), int(correct)] if (
            (drift is None or math.isfinite(drift)) and 0 <= frames <= MAX_COUNT and 0 <= correct <= MAX_COUNT
        ):
            return WindowView(bundle, release, drift, frames, correct)
    raise ValueError(f"not a window: {str(row)[:60]}")


def read_names(blob: bytes | None) -> list[bytes]:
    """The names of the records that were taken last."""
    return [] if blob is None else [blob[i : i + NAME_BYTES] for i in range(0, len(blob), NAME_BYTES)]


def name_of(record: TelemetryRecord) -> bytes:
    """What tells a record from every other one of its device; an app that starts again begins its sequence anew."""
    text = f"{record.source}|{record.boot}|{record.sequence}|{record.started_s!r}"
    return blake2b(text.encode(), digest_size=NAME_BYTES).digest()
