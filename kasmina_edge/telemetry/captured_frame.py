"""One captured frame as bytes: sealed by the device, signed for its way, opened by the controller alone::

    b"KCF1" | header length (big-endian 16 bit) | header, canonical JSON | sealed frame | [signature, 64 bytes]

The seal is HPKE to the change plan's controller key, bound to device, bundle and sequence; the signature is the
device's Ed25519 over everything before it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import Field

from kasmina_edge.contracts.arrays import unpack_arrays
from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.record import DeviceId
from kasmina_edge.errors import BundleError, InputError, KasminaError, TrustError
from kasmina_edge.safety.encryption import SIGNATURE_BYTES, open_sealed, sign, verify

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_ITEM_BYTES = 250_000
"""Longest item, so that it fits one MQTT message with its signature."""
FRAME_CONTEXT = b"kasmina-frame-v1"
INFO_CONTEXT = "kasmina-capture-v1"
_MAGIC = b"KCF1"
_LENGTH = struct.Struct(">H")


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
    import numpy as np

    if array.dtype.kind not in "biuf":
        raise InputError(f"frame of dtype {array.dtype}: expected numbers")
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    digest = hashlib.sha256(FRAME_CONTEXT + b"\0" + plain.dtype.str.encode() + b"\0")
    digest.update(json.dumps(list(plain.shape)).encode() + b"\0")
    digest.update(plain.tobytes())
    return digest.hexdigest()


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


def pack_item(header: CaptureHeader, sealed: bytes) -> bytes:
    """An unsigned item."""
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
