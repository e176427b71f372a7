"""From sealed captures and an annotator's file to training data.

Labels never come from a device: an annotator names a frame by its digest in a CSV file of ``digest,label`` lines.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kasmina_edge.errors import InputError, TrustError
from kasmina_edge.fleet.store import FleetStore
from kasmina_edge.storage import as_storage_error
from kasmina_edge.telemetry.capture import open_capture

MAX_ANNOTATIONS_BYTES = 64 * 1024 * 1024
BATCH_FRAMES = 64

_DIGEST = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class LabelledFrames:
    """Captured frames with labels, in the order of device and sequence; unpacks as ``x, y, batch_ids``.

    Attributes:
        x: (N, ...) float32, e.g. (N, 16, 16, 1).
        y: (N,) int64.
        batch_ids: The capture batches they come from, for the manifest of what learns from them (see `batch_id`).
        unlabelled: Frames that no annotation names.
        unknown: Annotations that name no captured frame.
        repeated: Frames that were captured more than once, beyond the first time.
        refused: Captures that could not be trusted or belong to no known device, with the reason.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    batch_ids: tuple[str, ...]
    unlabelled: int = 0
    unknown: int = 0
    repeated: int = 0
    refused: tuple[str, ...] = ()

    @property
    def batches(self) -> tuple[str, ...]:
        """Short for ``batch_ids``."""
        return self.batch_ids

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.y, self.batch_ids))


def batch_id(device: str, sequence: int) -> str:
    """The capture batch that a frame belongs to: 64 sequences of one device.

    Manifests name batches, so that an erasure request for a device, or for a stretch of its captures, finds every graft
    that learned from it.

    >>> batch_id("cam-2", 130)
    'cam-2/000002'
    """
    return f"{device}/{sequence // BATCH_FRAMES:06d}"


def read_annotations(path: Path) -> dict[str, int]:
    """Labels by frame digest from a CSV file of ``digest,label`` lines; a first line with these two words is skipped,
    and so are lines without a label yet.

    Raises:
        InputError: Missing, longer than 64 MiB, not UTF-8, or a line is malformed or contradicts an earlier one; the
            message names the line.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_ANNOTATIONS_BYTES + 1)
    except FileNotFoundError as exc:
        raise InputError(f"{path}: there is no annotation file", "Write one line `digest,label` a frame.") from exc
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    if len(data) > MAX_ANNOTATIONS_BYTES:
        raise InputError(f"{path}: more than {MAX_ANNOTATIONS_BYTES} bytes are not read")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not UTF-8 ({exc})") from exc
    labels: dict[str, int] = {}
    try:
        for number, row in enumerate(csv.reader(lines, strict=True), start=1):
            unfilled = len(row) == 2 and not row[1].strip()
            if row and not unfilled and not (number == 1 and [cell.strip() for cell in row] == ["digest", "label"]):
                digest, label = _annotation(row, f"{path}:{number}")
                if labels.setdefault(digest, label) != label:
                    raise InputError(
                        f"{path}:{number}: label {label} for {digest[:12]}, an earlier line says {labels[digest]}"
                    )
    except csv.Error as exc:
        raise InputError(f"{path}: not CSV ({exc})") from exc
    return labels


def export_labelled(
    store: FleetStore,
    sealing_key: X25519PrivateKey,
    device_publics: Mapping[str, str],
    labels: Mapping[str, int],
    *,
    devices: Collection[str] | None = None,
    since_s: float = 0.0,
) -> LabelledFrames:
    """Open the captured frames and join them with labels.

    Args:
        store: Holds the sealed frames.
        sealing_key: The controller's X25519 key.
        device_publics: Ed25519 public key of each enrolled device, 64 hex digits.
        labels: Class by frame digest, from `read_annotations`.
        devices: Only captures of these; None: of all in ``device_publics``.
        since_s: Only captures that arrived at this time or later, by the controller's clock: those since an alarm, say.

    Returns:
        Frames with labels and the counts of what was left out. A leading batch dimension of 1 is taken off, and a frame
        of two dimensions gets a channel.

    Raises:
        InputError: Labelled frames differ in shape.
    """
    frames: list[npt.NDArray[np.float32]] = []
    classes: list[int] = []
    batches: set[str] = set()
    seen: set[str] = set()
    refused: list[str] = []
    unlabelled = repeated = 0
    for stored in store.captures():
        if stored.received_s < since_s or (devices is not None and stored.device not in devices):
            continue
        try:
            if stored.device not in device_publics:
                raise TrustError(f"capture {stored.sequence}: device {stored.device} is not enrolled")
            frame = open_capture(stored.payload, sealing_key, device_publics[stored.device])
            if (frame.device, frame.sequence) != (stored.device, stored.sequence):
                raise TrustError(f"capture {stored.sequence} of {stored.device}: holds a frame of {frame.device}")
        except TrustError as exc:
            refused.append(exc.message)
            continue
        if frame.digest in seen:
            repeated += 1
            continue
        seen.add(frame.digest)
        if frame.digest not in labels:
            unlabelled += 1
            continue
        frames.append(_as_sample(frame.array))
        classes.append(labels[frame.digest])
        batches.add(batch_id(frame.device, frame.sequence))
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise InputError(f"captured frames have {len(shapes)} shapes: {sorted(shapes)}", "Export one device at a time.")
    x = np.stack(frames) if frames else np.empty((0, 16, 16, 1), np.float32)
    return LabelledFrames(
        x, np.array(classes, np.int64), tuple(sorted(batches)), unlabelled, len(labels.keys() - seen), repeated,
        tuple(refused),
    )  # fmt: skip


def _annotation(row: list[str], where: str) -> tuple[str, int]:
    if len(row) != 2:
        raise InputError(f"{where}: expected 2 columns `digest,label`, got {len(row)}")
    digest, label = row[0].strip(), row[1].strip()
    if not _DIGEST.match(digest):
        raise InputError(f"{where}: expected 64 hex digits, got {digest[:20]!r}")
    if not (label.isascii() and label.isdigit() and len(label) <= 9):
        raise InputError(f"{where}: expected a class index from 0 up, got {label[:20]!r}")
    return digest, int(label)


def _as_sample(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    sample = array.astype(np.float32)
    if sample.ndim == 4 and sample.shape[0] == 1:
        sample = sample[0]
    return sample[..., None] if sample.ndim == 2 else sample
