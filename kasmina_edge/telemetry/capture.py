"""Captured inputs: kept only when the change plan says so, readable only by the controller.

A device seals each frame with HPKE to the change plan's controller key, bound to device, bundle and sequence, so that
neither the disk nor the broker can read it and no frame can pass for another. Before the upload the agent signs it with
the device's Ed25519 key. Bytes of an item::

    b"KCF1" | header length (big-endian 16 bit) | header, canonical JSON | sealed frame | [signature, 64 bytes]

The signature covers everything before it. Sequences count up over the life of the folder and are reserved on disk
before they are used; a plan with a higher serial brings a new budget.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import Field, ValidationError

from kasmina_edge.contracts.arrays import pack_arrays, unpack_arrays
from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.change_plan import ChangePlan
from kasmina_edge.contracts.record import DeviceId
from kasmina_edge.errors import BundleError, InputError, KasminaError, StorageError, TrustError
from kasmina_edge.safety.encryption import SIGNATURE_BYTES, open_sealed, seal, sign, verify
from kasmina_edge.storage import (
    as_storage_error,
    hold_lock,
    make_private_folder,
    remove_file,
    remove_tree,
    rename_durable,
    write_durable,
)

MAX_ITEM_BYTES = 250_000
"""Longest item, so that it fits one MQTT message with its signature."""
FRAME_CONTEXT = b"kasmina-frame-v1"
INFO_CONTEXT = "kasmina-capture-v1"

_MAGIC = b"KCF1"
_SET_ASIDE = "It is set aside as NAME.bad; the other frames are uploaded."
_LENGTH = struct.Struct(">H")
_ITEM = re.compile(r"([0-9]{12})\.sealed")
_USED = re.compile(r"([0-9]{12})\.sealed(\.bad)?")


class CaptureHeader(SignedContract):
    """What everybody may know about a captured frame: whose it is, what ran, and its number; not what it shows."""

    format: Literal[1] = 1
    device: DeviceId
    bundle: Annotated[str, Field(pattern=r"^[A-Za-z0-9 ._+-]{1,100}$")]
    sequence: Annotated[int, Field(ge=0, le=2**53)]
    at_s: float

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed header is nothing to trust."""
        return TrustError

    def info(self) -> bytes:
        """What the sealed frame is bound to."""
        return f"{INFO_CONTEXT}|{self.device}|{self.bundle}|{self.sequence}".encode()


class _Spent(SignedContract):
    """What was spent of the budget in the plan with ``serial``."""

    serial: int
    frames: Annotated[int, Field(ge=0)] = 0
    bytes: Annotated[int, Field(ge=0)] = 0


class _Ledger(SignedContract):
    """Durable counts: the next sequence, and what was spent, by the name of the bundle that a plan is for."""

    next_sequence: Annotated[int, Field(ge=0)] = 0
    spent: dict[str, _Spent] = {}

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        return StorageError

    def under(self, plan: ChangePlan) -> _Spent | None:
        """What was spent under ``plan``; None when a newer plan was in force already, and this one allows nothing."""
        spent = self.spent.get(plan.bundle, _Spent(serial=plan.serial))
        if spent.serial > plan.serial:
            return None
        return spent if spent.serial == plan.serial else _Spent(serial=plan.serial)


@dataclass(frozen=True)
class CapturedFrame:
    """A captured frame as the controller opens it; ``digest`` is its `frame_digest`, ``at_s`` the device's clock."""

    digest: str
    array: npt.NDArray[Any]
    device: str
    bundle: str
    sequence: int
    at_s: float


def frame_digest(array: npt.NDArray[Any]) -> str:
    """The name annotators know a frame by: SHA-256 over dtype, shape and bytes, as 64 hex digits.

    Hashed are ``kasmina-frame-v1``, the dtype (little-endian, e.g. ``<f4``) and the shape as JSON, each followed by a
    zero byte, then the values in C order, little-endian. Memory layout and byte order do not matter; the same values in
    another dtype or shape are another frame.

    Raises:
        InputError: Not an array of numbers or booleans.
    """
    if array.dtype.kind not in "biuf":
        raise InputError(f"frame of dtype {array.dtype}: expected numbers")
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    digest = hashlib.sha256(FRAME_CONTEXT + b"\0" + plain.dtype.str.encode() + b"\0")
    digest.update(json.dumps(list(plain.shape)).encode() + b"\0")
    digest.update(plain.tobytes())
    return digest.hexdigest()


class CaptureStore:
    """A device's captured frames, one sealed file each, until the agent has handed them to the outbox.

    Safe for several processes: apps `keep`, the agent lists, uploads and forgets.

    Args:
        folder: ``capture`` of the data folder; made when something is kept.
        plan: The device's change plan; nothing is kept without one, or when it has no capture budget or controller key.
        device: Device id.
        clock: Wall clock, seconds since 1970 UTC.
    """

    def __init__(
        self, folder: Path, plan: ChangePlan | None, device: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self._plan, self._device, self._clock = plan, device, clock

    def keep(self, frame: npt.NDArray[Any], *, bundle: str) -> str | None:
        """Seal one frame into the folder; when this returns a digest, the frame is on disk and counted.

        Args:
            frame: The input as the app has it.
            bundle: Digest (or id) of the bundle that met it.

        Returns:
            Its `frame_digest`; None when the plan does not allow capture or its budget is spent.

        Raises:
            InputError: Not numbers, too large for one message, or ``bundle`` is not a digest or id.
            StorageError: The disk refuses; the frame is not kept.
        """
        plan = self._plan
        if plan is None or plan.capture is None or plan.controller_key is None:
            return None
        digest = frame_digest(frame)
        plaintext = pack_arrays({"frame": np.ascontiguousarray(frame, dtype=frame.dtype.newbyteorder("<"))})
        if len(plaintext) > MAX_ITEM_BYTES - 1024:
            raise InputError(f"frame of {frame.nbytes} bytes: at most about {MAX_ITEM_BYTES - 2048} can be captured")
        make_private_folder(self.folder)
        with hold_lock(self.folder / ".lock", wait=True):
            for leftover in self.folder.glob(".*.tmp"):  # of a write that was cut off; nobody else writes now
                remove_file(leftover)
            ledger = self._ledger()
            spent = ledger.under(plan)
            if spent is None:
                return None
            header = self._header(bundle, ledger.next_sequence)
            item = _pack(header, seal(plaintext, plan.controller_key, info=header.info()))
            now = _Spent(serial=plan.serial, frames=spent.frames + 1, bytes=spent.bytes + len(item))
            if now.frames > plan.capture.max_frames or now.bytes > plan.capture.max_bytes:
                return None
            after = _Ledger(next_sequence=ledger.next_sequence + 1, spent={**ledger.spent, plan.bundle: now})
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
        if spent is None:
            return 0, 0
        return max(0, plan.capture.max_frames - spent.frames), max(0, plan.capture.max_bytes - spent.bytes)

    def _header(self, bundle: str, sequence: int) -> CaptureHeader:
        try:
            return CaptureHeader(device=self._device, bundle=bundle, sequence=sequence, at_s=self._clock())
        except ValidationError as exc:
            raise InputError(f"capture: device {self._device!r} or bundle {bundle[:100]!r} is not a name") from exc

    def _ledger(self) -> _Ledger:
        path = self.folder / "ledger.json"
        try:
            return _Ledger.from_bytes(path.read_bytes(), where=str(path))
        except FileNotFoundError:
            used = (int(m[1]) for m in map(_USED.fullmatch, self._names(regular=False)) if m)
            return _Ledger(next_sequence=max(used, default=-1) + 1)
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


def sign_capture(item: bytes, signing_key: Ed25519PrivateKey) -> bytes:
    """An item with the device's signature behind it."""
    return item + sign(signing_key, item)


def read_header(payload: bytes) -> CaptureHeader:
    """The readable part of an item, not verified.

    Raises:
        TrustError: Not a captured frame.
    """
    return _split(payload)[0]


def verify_capture(payload: bytes, device_public_hex: str) -> CaptureHeader:
    """The header of a signed item, when the signature holds; needs no private key.

    Raises:
        TrustError: Not a captured frame, or not signed by this device.
    """
    header, _ = _split(payload[:-SIGNATURE_BYTES])
    verify(device_public_hex, payload[:-SIGNATURE_BYTES], payload[-SIGNATURE_BYTES:])
    return header


def open_capture(payload: bytes, sealing_private_key: X25519PrivateKey, device_public_hex: str) -> CapturedFrame:
    """Verify and open a signed item.

    Args:
        payload: What `CaptureStore.upload` made.
        sealing_private_key: The controller's.
        device_public_hex: Ed25519 key that the device was enrolled with.

    Raises:
        TrustError: Not signed by this device, changed, sealed to another key, or moved to another device, bundle or
            sequence.
    """
    header = verify_capture(payload, device_public_hex)
    _, sealed = _split(payload[:-SIGNATURE_BYTES])
    plaintext = open_sealed(sealed, sealing_private_key, info=header.info())
    where = f"capture {header.sequence} of {header.device}"
    try:
        arrays = unpack_arrays(plaintext, where=where, max_bytes=MAX_ITEM_BYTES)
    except BundleError as exc:
        raise TrustError(exc.message, "The device sealed something that is not a frame; look at the device.") from exc
    if set(arrays) != {"frame"}:
        raise TrustError(f"{where}: expected one array called frame, got {sorted(arrays)}")
    frame = arrays["frame"]
    return CapturedFrame(frame_digest(frame), frame, header.device, header.bundle, header.sequence, header.at_s)


def _pack(header: CaptureHeader, sealed: bytes) -> bytes:
    text = header.to_bytes()
    return _MAGIC + _LENGTH.pack(len(text)) + text + sealed


def _split(item: bytes) -> tuple[CaptureHeader, bytes]:
    start = len(_MAGIC) + _LENGTH.size
    if len(item) > MAX_ITEM_BYTES + SIGNATURE_BYTES or len(item) < start or item[: len(_MAGIC)] != _MAGIC:
        raise TrustError(f"{len(item)} bytes: not a captured frame")
    (length,) = _LENGTH.unpack_from(item, len(_MAGIC))
    if len(item) < start + length:
        raise TrustError(f"captured frame: a header of {length} bytes is announced, {len(item) - start} follow")
    return CaptureHeader.from_bytes(item[start : start + length], where="capture header"), item[start + length :]
