"""Keys, signatures and sealing: Ed25519 (RFC 8032) and HPKE base mode (RFC 9180) from the `cryptography` package.

The HPKE suite is X25519 / HKDF-SHA256 / AES-256-GCM. Sealed bytes are ``enc`` (32 bytes, the sender's ephemeral public
key) followed by the ciphertext and its 16-byte tag. ``info`` is bound into the key schedule: bytes sealed for one
purpose do not open under another. Private keys live in PEM PKCS#8 files of mode 0600; files that others can read are
refused, because a key that was readable is a key that may be known.
"""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from kasmina_edge.errors import InputError, TrustError
from kasmina_edge.storage import as_storage_error, sync_folder, write_durable

ENC_BYTES = 32
TAG_BYTES = 16
SIGNATURE_BYTES = 64
MAX_KEY_FILE_BYTES = 4096

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

AnyKey = Ed25519PrivateKey | Ed25519PublicKey | X25519PrivateKey | X25519PublicKey


def seal(plaintext: bytes, recipient_public_hex: str, *, info: bytes) -> bytes:
    """Encrypt to a recipient, bound to ``info``; only the holder of the private key can read it.

    Args:
        plaintext: Any length.
        recipient_public_hex: X25519 public key, 64 hex digits.
        info: Names the purpose and everything the bytes must not be moved away from.

    Returns:
        ``enc || ciphertext || tag``: 48 bytes longer than the plaintext, different at every call.

    Raises:
        InputError: Not an X25519 public key.
    """
    raw = _public_bytes(recipient_public_hex)
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(raw), info)
    except ValueError as exc:  # a point of low order has no shared secret (RFC 7748 section 6.1)
        raise InputError(f"X25519 public key {recipient_public_hex[:12]}: cannot be sealed to ({exc})") from exc


def open_sealed(sealed: bytes, private_key: X25519PrivateKey, *, info: bytes) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        TrustError: Too short, changed, sealed to another key, or bound to another ``info``.
    """
    if len(sealed) < ENC_BYTES + TAG_BYTES:
        raise TrustError(f"sealed bytes: at least {ENC_BYTES + TAG_BYTES} bytes are needed, got {len(sealed)}")
    try:
        return _SUITE.decrypt(sealed, private_key, info)
    except (InvalidTag, ValueError) as exc:
        raise TrustError(
            f"sealed bytes ({len(sealed)}): changed, sealed to another key, or bound to something else",
            "Check that this is the controller's sealing key; otherwise discard the message.",
        ) from exc


def sign(private_key: Ed25519PrivateKey, data: bytes) -> bytes:
    """Ed25519 signature, 64 bytes, the same for the same key and data."""
    return private_key.sign(data)


def verify(public_hex: str, data: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature; returning at all means that it holds.

    Args:
        public_hex: Ed25519 public key, 64 hex digits.
        data: What was signed.
        signature: 64 bytes.

    Raises:
        TrustError: The signature does not hold.
        InputError: Not a public key.
    """
    raw = _public_bytes(public_hex)
    try:
        key = Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as exc:
        raise InputError(f"Ed25519 public key {public_hex[:12]}: {exc}") from exc
    try:
        key.verify(signature, data)
    except InvalidSignature as exc:
        raise TrustError(
            f"signature over {len(data)} bytes does not hold under Ed25519 key {public_hex[:12]}",
            "Discard the message, and check that the sender is enrolled with this key.",
        ) from exc


def same_bytes(left: bytes | str, right: bytes | str) -> bool:
    """Compare digests or tags in a time that does not depend on where they differ."""
    a, b = (v.encode() if isinstance(v, str) else v for v in (left, right))
    return hmac.compare_digest(a, b)


def new_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make an Ed25519 key and its file (0600, durable).

    Raises:
        InputError: A file is there already; keys are never overwritten.
        StorageError: The disk refuses.
    """
    key = Ed25519PrivateKey.generate()
    _write_key(path, key)
    return key


def new_sealing_key(path: Path) -> X25519PrivateKey:
    """Make an X25519 key and its file; raises as `new_signing_key` does."""
    key = X25519PrivateKey.generate()
    _write_key(path, key)
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key file.

    Raises:
        InputError: Missing, or not a PEM PKCS#8 Ed25519 key.
        TrustError: Others than the owner may read or write it.
        StorageError: It cannot be read.
    """
    key = _read_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: expected an Ed25519 private key, got {type(key).__name__}")
    return key


def load_sealing_key(path: Path) -> X25519PrivateKey:
    """Read an X25519 key file; raises as `load_signing_key` does."""
    key = _read_key(path)
    if not isinstance(key, X25519PrivateKey):
        raise InputError(f"{path}: expected an X25519 private key, got {type(key).__name__}")
    return key


def public_hex(key: AnyKey) -> str:
    """The public half of a key as 64 hex digits."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey | X25519PrivateKey) else key
    return public.public_bytes_raw().hex()


def _public_bytes(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError as exc:
        raise InputError(f"public key {text[:12]!r}: not hexadecimal") from exc
    if len(raw) != 32:
        raise InputError(f"public key {text[:12]!r}: expected 32 bytes, got {len(raw)}")
    return raw


def _write_key(path: Path, key: Ed25519PrivateKey | X25519PrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    write_durable(draft, data, mode=0o600)
    try:
        os.link(draft, path)  # unlike a rename, refuses to replace a key
    except FileExistsError as exc:
        raise InputError(f"{path}: a key is there already", "Choose another path; keys are never overwritten.") from exc
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def _read_key(path: Path) -> object:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise InputError(f"{path}: there is no key file", "Check the path, or make the key first.") from exc
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & 0o077:
            raise TrustError(
                f"{path}: mode {mode:04o} lets others at this private key, expected 0600",
                f"Make a new key if others had access; otherwise `chmod 600 {path}`.",
            )
        data = os.read(fd, MAX_KEY_FILE_BYTES + 1)
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    finally:
        os.close(fd)
    try:
        if len(data) > MAX_KEY_FILE_BYTES:
            raise ValueError(f"longer than {MAX_KEY_FILE_BYTES} bytes")
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise InputError(f"{path}: not an unencrypted PEM PKCS#8 private key ({exc})") from exc
