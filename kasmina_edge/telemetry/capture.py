"""Captured inputs: kept only when the change plan says so, readable only by the controller, erased on demand.

A device seals each frame to the change plan's controller key (`captured_frame`), so that neither the disk nor the
broker can read it. Sequences count up over the life of the folder and are reserved on disk before they are used; a
newer plan brings a new budget where its budget is another one. What a plan's erasures cover is removed, and the ledger
remembers the time: it is never kept again, whichever plan a caller still holds.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.contracts.change_plan import CaptureSampling, ChangePlan, Erasure
from kasmina_edge.errors import InputError, StorageError, TrustError
from kasmina_edge.safety.encryption import seal
from kasmina_edge.storage import (
    as_storage_error,
    hold_lock,
    make_private_folder,
    remove_file,
    remove_tree,
    rename_durable,
    sync_folder,
    write_durable,
)
from kasmina_edge.telemetry.capture_ledger import Ledger
from kasmina_edge.telemetry.captured_frame import (
    FRAME_CONTEXT,
    MAX_ITEM_BYTES,
    CapturedFrame,
    CaptureHeader,
    frame_digest,
    open_capture,
    pack_item,
    read_header,
    sign_capture,
    verify_capture,
)

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "FRAME_CONTEXT",
    "MAX_ITEM_BYTES",
    "CaptureHeader",
    "CaptureStore",
    "CapturedFrame",
    "Erased",
    "frame_digest",
    "open_capture",
    "read_header",
    "sign_capture",
    "verify_capture",
]

MAX_ERASURES_KNOWN = 1024
LOCK_WAIT_S = 10.0
_SET_ASIDE = "It is set aside as NAME.bad; the other frames are uploaded."
_ITEM = re.compile(r"([0-9]{12})\.sealed")
_USED = re.compile(r"([0-9]{12})\.sealed(\.bad)?")


@dataclass(frozen=True)
class Erased:
    """What an erasure removed: the number and the SHA-256 of each sealed item, which prove it without showing it."""

    id: str
    items: tuple[tuple[int, str], ...]

    def proof(self) -> dict[str, Any]:
        """Fields for the audit log; the digest covers every line ``SEQUENCE SHA256``, of which the first 64 stand."""
        lines = [f"{sequence} {digest}" for sequence, digest in sorted(self.items)]
        whole = sha256_hex("\n".join(lines).encode())
        return {"erasure": self.id, "frames": len(lines), "items_sha256": whole, "items": lines[:64]}


class CaptureStore:
    """A device's captured frames, one sealed file each, until the agent has handed them to the outbox.

    Safe for several processes: apps `keep`, the agent lists, uploads and forgets.

    Args:
        folder: ``capture`` of the data folder; made when something is kept.
        plan: The device's change plan; nothing is kept without one, or when it has no capture budget or controller key.
        device: Device id.
        clock: Wall clock, seconds since 1970 UTC.
        lock_wait_s: Longest wait for another process that works in the folder, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        plan: ChangePlan | None,
        device: str,
        clock: Callable[[], float] = time.time,
        *,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        self.folder = folder
        self._plan, self._device, self._clock, self._lock_wait_s = plan, device, clock, lock_wait_s

    @property
    def plan(self) -> ChangePlan | None:
        """The change plan that this store keeps frames under."""
        return self._plan

    @property
    def sampling(self) -> CaptureSampling | None:
        """What the plan has this device keep by itself; None: nothing."""
        plan = self._plan
        return plan.capture.sampling if plan is not None and plan.capture and plan.controller_key else None

    def spent(self) -> tuple[int, int, float | None] | None:
        """Frames and bytes kept under the plan, and when the first was; None without a plan that allows any.

        Raises:
            StorageError: The ledger cannot be read.
        """
        plan = self._plan
        spent = self._ledger().under(plan) if plan is not None and plan.capture is not None else None
        return None if spent is None else (spent.frames, spent.bytes, spent.since_s)

    def keep(self, frame: npt.NDArray[Any], *, bundle: str, at_s: float | None = None) -> str | None:
        """Seal one frame into the folder; when this returns a digest, the frame is on disk and counted.

        Args:
            frame: The input as the app has it.
            bundle: Digest (or id) of the bundle that met it.
            at_s: When it was seen, wall clock; now by default.

        Returns:
            Its `frame_digest`; None when the plan does not allow capture, its budget is spent or its days are past, or
            an erasure covers the moment.

        Raises:
            InputError: Not numbers, too large for one message, ``at_s`` is no time, or ``bundle`` is not a digest or
                id.
            LockedError: Another process kept the folder's lock too long; the frame is not kept.
            StorageError: The disk refuses; the frame is not kept.
        """
        import numpy as np

        plan = self._plan
        if plan is None or plan.capture is None or plan.controller_key is None:
            return None
        now_s = self._clock()
        at_s = now_s if at_s is None else at_s
        if not math.isfinite(at_s):
            raise InputError(f"capture: at_s is {at_s}, expected seconds since 1970 UTC")
        if any(erasure.covers(self._device, at_s) for erasure in plan.erasures):
            return None
        digest = frame_digest(frame)
        plaintext = pack_arrays({"frame": np.ascontiguousarray(frame, dtype=frame.dtype.newbyteorder("<"))})
        if len(plaintext) > MAX_ITEM_BYTES - 1024:
            raise InputError(f"frame of {frame.nbytes} bytes: at most about {MAX_ITEM_BYTES - 2048} can be captured")
        make_private_folder(self.folder)
        with self._locked():
            ledger = self._ledger()
            spent = ledger.under(plan)
            if spent is None or spent.is_over(plan, now_s):
                return None
            if any(from_s <= at_s < to_s for from_s, to_s in ledger.covered):
                return None
            header = self._header(bundle, ledger.next_sequence, at_s)
            item = pack_item(header, seal(plaintext, plan.controller_key, info=header.info()))
            now = spent.model_copy(update={"frames": spent.frames + 1, "bytes": spent.bytes + len(item)}).at(now_s)
            if now.frames > plan.capture.max_frames or now.bytes > plan.capture.max_bytes:
                return None
            after = ledger.model_copy(
                update={"next_sequence": ledger.next_sequence + 1, "spent": {**ledger.spent, plan.bundle: now}}
            )
            write_durable(self.folder / "ledger.json", after.to_bytes())
            write_durable(self.folder / f"{header.sequence:012d}.sealed", item)
        return digest

    def pending(self) -> list[int]:
        """Sequences of the frames that wait for their upload, oldest first; what is no regular file is none."""
        return sorted(int(m[1]) for m in map(_ITEM.fullmatch, self._names(regular=True)) if m)

    def payload(self, item: int) -> bytes:
        """The unsigned bytes of one pending frame.

        Raises:
            StorageError: It is not there, is no regular file, is longer than any item, or cannot be read.
            TrustError: Not a captured frame, or one with another number.
        """
        path = self._path(item)
        data = _read_item(path)
        try:
            header = read_header(data)
        except TrustError as exc:
            raise TrustError(f"{path}: {exc.message}", _SET_ASIDE) from exc
        if header.sequence != item:
            raise TrustError(f"{path}: holds frame {header.sequence}, expected {item}", _SET_ASIDE)
        return data

    def upload(self, item: int, signing_key: Ed25519PrivateKey) -> bytes:
        """The bytes of one pending frame as the controller wants them: signed by the device; always the same bytes.

        Raises:
            StorageError: As `payload`.
            TrustError: As `payload`.
        """
        return sign_capture(self.payload(item), signing_key)

    def forget(self, item: int) -> None:
        """Remove a frame that was handed over; the budget stays spent."""
        remove_file(self._path(item))

    def set_aside(self, item: int) -> None:
        """Rename a frame that cannot be uploaded to ``NAME.bad``, durably, so that it is not pending any more.

        A folder is set aside like a file, an earlier ``NAME.bad`` is replaced, and a missing frame is fine.

        Raises:
            StorageError: The disk refused.
        """
        path = self._path(item)
        bad = path.with_name(f"{path.name}.bad")
        if not os.path.lexists(path):
            return
        if bad.is_dir() and not bad.is_symlink():
            remove_tree(bad)
        elif path.is_dir():
            remove_file(bad)
        rename_durable(path, bad)

    def erasures_due(self) -> list[Erasure]:
        """The plan's erasures that this folder does not remember to have carried out; none without a plan."""
        plan = self._plan
        if plan is None or not plan.erasures:
            return []
        known = set(self._ledger().erased)
        return [e for e in plan.erasures if e.id not in known and e.device in (None, self._device)]

    def erase(self, erasure: Erasure, beat: Callable[[], object] = lambda: None) -> Erased:
        """Remove every pending or set-aside frame that ``erasure`` covers, durably; a frame nobody can read as well.

        From before the first is removed, nothing of the covered time is kept any more, by any process. The bytes are
        gone from the folder; what a flash chip keeps of them is sealed to the controller's key.

        Args:
            erasure: The demand.
            beat: Called after every frame.

        Raises:
            LockedError: Another process kept the folder's lock too long; do it again.
            StorageError: The disk refused; do it again.
        """
        make_private_folder(self.folder)
        with self._locked():
            ledger = self._ledger()
            covered = ledger.covering(erasure)
            if erasure.device in (None, self._device) and covered != ledger.covered:
                write_durable(self.folder / "ledger.json", ledger.model_copy(update={"covered": covered}).to_bytes())
            gone = self._remove(lambda header: header is None or erasure.covers(header.device, header.at_s), beat)
        return Erased(erasure.id, gone)

    def days_are_over(self) -> bool:
        """Whether the plan's days are past; they begin with the first frame, or once the clock was set after it.

        Raises:
            StorageError: The ledger cannot be read, or written where the days begin now.
        """
        plan, now_s = self._plan, self._clock()
        if plan is None or plan.capture is None or plan.capture.max_days is None:
            return False
        spent = self._ledger().under(plan)
        if spent is None:
            return False
        if spent.at(now_s) != spent:
            self._begin_days(plan, now_s)
        return spent.is_over(plan, now_s)

    def expire(self, beat: Callable[[], object] = lambda: None) -> Erased:
        """Remove every pending frame when the plan's days are past.

        Args:
            beat: Called after every frame.

        Raises:
            LockedError: Another process kept the folder's lock too long; do it again.
            StorageError: The disk refused; do it again.
        """
        if not self.folder.is_dir() or not self.days_are_over():
            return Erased("max-days", ())
        with self._locked():
            return Erased("max-days", self._remove(lambda header: True, beat))

    def remember_erasures(self, ids: Iterable[str]) -> None:
        """Note durably that these were carried out everywhere, and told.

        `MAX_ERASURES_KNOWN` are kept: those that the plan still demands, then the newest.
        """
        demanded = {e.id for e in self._plan.erasures} if self._plan is not None else set()
        make_private_folder(self.folder)
        with self._locked():
            ledger = self._ledger()
            known = sorted(dict.fromkeys((*ledger.erased, *ids)), key=lambda name: name in demanded)
            erased = tuple(known[-MAX_ERASURES_KNOWN:])
            write_durable(self.folder / "ledger.json", ledger.model_copy(update={"erased": erased}).to_bytes())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in the folder, without what a write that was cut off left: nobody else writes now."""
        with hold_lock(self.folder / ".lock", wait_s=self._lock_wait_s):
            for leftover in self.folder.glob(".*.tmp"):
                remove_file(leftover)
            yield

    def _begin_days(self, plan: ChangePlan, now_s: float) -> None:
        with self._locked():
            ledger = self._ledger()
            spent = ledger.under(plan)
            if spent is not None:
                after = ledger.model_copy(update={"spent": {**ledger.spent, plan.bundle: spent.at(now_s)}})
                write_durable(self.folder / "ledger.json", after.to_bytes())

    def _remove(
        self, covers: Callable[[CaptureHeader | None], bool], beat: Callable[[], object]
    ) -> tuple[tuple[int, str], ...]:
        """Under the lock: remove what is covered, durably; number and digest of each."""
        gone: list[tuple[int, str]] = []
        for leaf, sequence in sorted((n, int(m[1])) for n in self._names(regular=True) if (m := _USED.fullmatch(n))):
            path = self.folder / leaf
            data, header = b"", None
            try:
                data = _read_item(path)
                header = read_header(data)
            except (StorageError, TrustError):
                pass  # what cannot be read may be what was to be erased
            if covers(header):
                remove_file(path)
                gone.append((sequence, sha256_hex(data)))
            beat()
        sync_folder(self.folder)
        return tuple(gone)

    def _path(self, item: int) -> Path:
        return self.folder / f"{item:012d}.sealed"

    def _names(self, *, regular: bool) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                return [e.name for e in entries if not regular or e.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise as_storage_error(exc, self.folder) from exc

    def remaining(self) -> tuple[int, int]:
        """Frames and bytes that the plan still allows."""
        plan = self._plan
        if plan is None or plan.capture is None or plan.controller_key is None:
            return 0, 0
        spent = self._ledger().under(plan)
        if spent is None or spent.is_over(plan, self._clock()):
            return 0, 0
        return max(0, plan.capture.max_frames - spent.frames), max(0, plan.capture.max_bytes - spent.bytes)

    def _header(self, bundle: str, sequence: int, at_s: float) -> CaptureHeader:
        try:
            return CaptureHeader(device=self._device, bundle=bundle, sequence=sequence, at_s=at_s)
        except ValidationError as exc:
            raise InputError(f"capture: device {self._device!r} or bundle {bundle[:100]!r} is not a name") from exc

    def _ledger(self) -> Ledger:
        path = self.folder / "ledger.json"
        try:
            return Ledger.from_bytes(path.read_bytes(), where=str(path))
        except FileNotFoundError:
            used = (int(m[1]) for m in map(_USED.fullmatch, self._names(regular=False)) if m)
            return Ledger(next_sequence=max(used, default=-1) + 1)
        except OSError as exc:
            raise as_storage_error(exc, path) from exc


def _read_item(path: Path) -> bytes:
    """The bytes of one regular file, never more than an item has, and without waiting for a pipe."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise StorageError(f"{path}: not a regular file", _SET_ASIDE)
            if info.st_size > MAX_ITEM_BYTES:
                raise StorageError(f"{path}: {info.st_size} bytes, at most {MAX_ITEM_BYTES} are an item", _SET_ASIDE)
            with os.fdopen(fd, "rb", closefd=False) as file:
                return file.read(MAX_ITEM_BYTES)
        finally:
            os.close(fd)
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
