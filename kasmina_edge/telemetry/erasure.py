"""Carrying out a change plan's erasures: in the capture folder, in the outbox, and as proof in the audit log."""

from __future__ import annotations

from collections.abc import Callable

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.errors import TrustError
from kasmina_edge.telemetry.capture import CaptureHeader, CaptureStore, Erased, read_header
from kasmina_edge.telemetry.outbox import Outbox

STREAM = "capture"
_PAGE = 64
Note = Callable[..., None]


def carry_out(
    store: CaptureStore, outbox: Outbox, note: Note, beat: Callable[[], object] = lambda: None
) -> list[Erased]:
    """Do every erasure that is due, and expire what the plan's days are past for; told in the audit log, then noted.

    A power cut in between repeats the erasure, which finds nothing left, and tells it again.

    Args:
        store: The device's captures under its plan.
        outbox: Where captures wait for their upload, in stream ``capture``.
        note: Called with an event name and plain fields, for the audit log; it must have written when it returns.
        beat: Called again and again while the work gets on.

    Returns:
        What was removed, erasure by erasure; those that found nothing included.

    Raises:
        StorageError: The disk refused; do it again.
    """
    done: list[Erased] = []
    for erasure in store.erasures_due():
        kept = store.erase(erasure, beat)
        waiting = _from_outbox(outbox, lambda header, e=erasure: e.covers(header.device, header.at_s), beat)  # type: ignore[misc]
        erased = Erased(erasure.id, tuple(sorted({*kept.items, *waiting})))
        note("captures_erased", **erased.proof())
        store.remember_erasures([erasure.id])
        done.append(erased)
    if store.days_are_over():
        kept = store.expire(beat)
        waiting = _from_outbox(outbox, lambda header: True, beat)
        expired = Erased(kept.id, tuple(sorted({*kept.items, *waiting})))
        if expired.items:
            note("captures_expired", **expired.proof())
            done.append(expired)
    return done


def _from_outbox(
    outbox: Outbox, covers: Callable[[CaptureHeader], bool], beat: Callable[[], object]
) -> list[tuple[int, str]]:
    """Remove captures that wait for their upload."""
    gone: list[tuple[int, str]] = []
    last = -1
    while entries := outbox.newer(last, _PAGE, stream=STREAM):
        last = entries[-1].id
        doomed = []
        for entry in entries:
            try:
                header = read_header(entry.payload)
            except TrustError:
                doomed.append((entry.id, -1, sha256_hex(entry.payload)))  # nobody can read it, and it may be meant
                continue
            if covers(header):
                doomed.append((entry.id, header.sequence, sha256_hex(entry.payload)))
        outbox.erase([entry_id for entry_id, _, _ in doomed])
        gone += [(sequence, digest) for _, sequence, digest in doomed]
        beat()
    return gone
