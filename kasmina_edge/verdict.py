"""What the health gate found when the active bundle was committed, kept beside the slots for telemetry."""

from __future__ import annotations

from pathlib import Path

from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.errors import KasminaError, StorageError
from kasmina_edge.storage import remove_temporaries, write_durable

VERDICT_FILE = "committed.json"


class CommittedVerdict(Contract):
    """What the gate found when the active bundle was committed; shares are of 1, None is not measured."""

    content_digest: str
    at_s: float
    self_test: float | None = None
    probe_accuracy: float | None = None

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A damaged file is a fault of the disk."""
        return StorageError


def write_verdict(data_folder: Path, verdict: CommittedVerdict) -> None:
    """Keep a verdict beside the slots, durably; it decides nothing, so a power cut before it loses a figure only.

    Raises:
        StorageError: The disk refused.
    """
    remove_temporaries(data_folder / VERDICT_FILE)
    write_durable(data_folder / VERDICT_FILE, verdict.to_bytes())


def read_verdict(data_folder: Path, content_digest: str) -> CommittedVerdict | None:
    """The verdict about this content, or None: never committed here, another one since, or the file is not readable."""
    path = data_folder / VERDICT_FILE
    try:
        found = CommittedVerdict.from_bytes(path.read_bytes(), where=str(path))
    except (OSError, StorageError):
        return None
    return found if found.content_digest == content_digest else None
