"""One sealed message: AES-256-GCM under a key and a nonce that are derived for it alone.

Both come from HKDF-SHA256 (RFC 5869) over a long-lived key and 32 fresh random bytes that stand in the message, as
RFC 8188 does for HTTP bodies. There is no counter to lose: neither a crash, a fork, nor a disk that is put back to an
older state can make a key meet a nonce twice (NIST SP 800-38D section 8); two equal salts among 2^64 messages have a
probability below 2^-128. docs/spec/vault.md has the bytes.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kasmina_edge.errors import InputError, TrustError

MAGIC = b"KSL1"
SALT_BYTES = 32
OVERHEAD_BYTES = 4 + 4 + SALT_BYTES + 16
"""What sealing adds: magic, key number, salt, tag."""
MAX_PLAINTEXT_BYTES = 1 << 30

_HEADER = struct.Struct(f">4sI{SALT_BYTES}s")

Random = Callable[[int], bytes]


def sealed_with(sealed: bytes) -> int:
    """Number of the key that sealed bytes need.

    Raises:
        TrustError: Too short, or not sealed by a vault.
    """
    if len(sealed) < OVERHEAD_BYTES or sealed[:4] != MAGIC:
        raise TrustError(
            f"sealed bytes ({len(sealed)}): at least {OVERHEAD_BYTES} that begin with {MAGIC.decode()} are needed",
            "The data was cut short or overwritten; discard it.",
        )
    return int.from_bytes(sealed[4:8], "big")


def key_id(kek: bytes) -> str:
    """16 hex digits that name a key-encryption key and do not help to find it."""
    return HKDF(hashes.SHA256(), 8, None, b"kasmina vault 1 id").derive(kek).hex()


def _derive(key: bytes, salt: bytes, number: int, purpose: str) -> tuple[bytes, bytes]:
    """AES-256 key and 96-bit nonce of one message."""
    info = b"kasmina vault 1 seal\0" + number.to_bytes(4, "big") + purpose.encode()
    both = HKDF(hashes.SHA256(), 32 + 12, salt, info).derive(key)
    return both[:32], both[32:]


def seal_with(key: bytes, number: int, purpose: str, plaintext: bytes, aad: bytes, random_bytes: Random) -> bytes:
    """Magic, key number, salt, ciphertext, tag; header and ``aad`` are authenticated.

    Raises:
        InputError: The plaintext is longer than 1 GiB.
    """
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise InputError(f"vault: {len(plaintext)} bytes to seal, at most {MAX_PLAINTEXT_BYTES} at once")
    salt = random_bytes(SALT_BYTES)
    header = _HEADER.pack(MAGIC, number, salt)
    message_key, nonce = _derive(key, salt, number, purpose)
    return header + AESGCM(message_key).encrypt(nonce, plaintext, header + aad)


def open_with(key: bytes, purpose: str, sealed: bytes, aad: bytes) -> bytes:
    """The plaintext of what `seal_with` made.

    Raises:
        TrustError: Changed, cut short, or sealed with another key, purpose or ``aad``.
    """
    number = sealed_with(sealed)
    header = sealed[: _HEADER.size]
    message_key, nonce = _derive(key, header[8:], number, purpose)
    try:
        return AESGCM(message_key).decrypt(nonce, sealed[_HEADER.size :], header + aad)
    except InvalidTag as exc:
        raise TrustError(
            f"sealed bytes ({len(sealed)}, key {number}): changed, or sealed for another purpose or place",
            "The data was tampered with or belongs elsewhere; discard it.",
        ) from exc


def authenticator(kek: bytes, data: bytes) -> str:
    """HMAC-SHA256 of ``data`` under a key derived from ``kek``, 64 hex digits."""
    key = HKDF(hashes.SHA256(), 32, None, b"kasmina vault 1 ring").derive(kek)
    return hmac.digest(key, data, "sha256").hex()
