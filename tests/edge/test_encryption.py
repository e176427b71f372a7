"""Sealing, signing and key files; HPKE checked against an RFC 9180 receiver written from the RFC's text."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError, StorageError, TrustError
from kasmina_edge.safety import encryption as enc

KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = enc.public_hex(KEY)
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + key, hashlib.sha256)


def expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    out, block, counter = b"", b"", 1
    text = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    while len(out) < length:
        block = hmac.digest(key, block + text + bytes([counter]), hashlib.sha256)
        out, counter = out + block, counter + 1
    return out[:length]


def shared_secret(private: X25519PrivateKey, peer: bytes) -> bytes:
    """RFC 9180 section 4.1, Decap of DHKEM(X25519, HKDF-SHA256)."""
    suite = b"KEM" + (0x20).to_bytes(2, "big")
    dh = private.exchange(X25519PublicKey.from_public_bytes(peer))
    context = peer + private.public_key().public_bytes_raw()
    return expand(suite, extract(suite, b"", b"eae_prk", dh), b"shared_secret", context, 32)


def key_schedule(secret: bytes, info: bytes, aead: int, key_bytes: int) -> tuple[bytes, bytes]:
    """RFC 9180 section 5.1 in base mode: key and base nonce."""
    suite = b"HPKE" + b"".join(n.to_bytes(2, "big") for n in (0x20, 0x01, aead))
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    master = extract(suite, secret, b"secret", b"")
    return expand(suite, master, b"key", context, key_bytes), expand(suite, master, b"base_nonce", context, 12)


def test_the_receiver_of_this_test_reproduces_the_rfc() -> None:
    """RFC 9180 appendix A.1.1, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, base mode."""
    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    peer = bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
    private = bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    secret = shared_secret(X25519PrivateKey.from_private_bytes(private), peer)
    assert secret.hex() == "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc"
    key, nonce = key_schedule(secret, info, aead=1, key_bytes=16)
    assert (key.hex(), nonce.hex()) == ("4531685d41d65f03dc48f6b8302c05b0", "56d890e5accaaf011cff4b7d")


@settings(max_examples=30)
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_sealed_bytes_are_rfc_9180(plaintext: bytes, info: bytes) -> None:
    sealed = enc.seal(plaintext, PUBLIC, info=info)
    assert len(sealed) == enc.ENC_BYTES + len(plaintext) + enc.TAG_BYTES
    key, nonce = key_schedule(shared_secret(KEY, sealed[:32]), info, aead=2, key_bytes=32)
    assert AESGCM(key).decrypt(nonce, sealed[32:], b"") == plaintext
    assert enc.open_sealed(sealed, KEY, info=info) == plaintext
    assert enc.seal(plaintext, PUBLIC, info=info) != sealed  # a fresh ephemeral key every time


@settings(max_examples=150)
@given(st.binary(max_size=40), st.data())
def test_any_changed_bit_is_noticed(plaintext: bytes, data: st.DataObject) -> None:
    sealed = bytearray(enc.seal(plaintext, PUBLIC, info=b"i"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1) | st.just(255))  # X25519 alone would ignore bit 255 of a point
    sealed[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(TrustError):
        enc.open_sealed(bytes(sealed), KEY, info=b"i")


@given(st.binary(max_size=100))
def test_other_bytes_never_open(garbage: bytes) -> None:
    with pytest.raises(TrustError):
        enc.open_sealed(garbage, KEY, info=b"i")


def test_wrong_key_wrong_info_and_cut_bytes_do_not_open() -> None:
    sealed = enc.seal(b"secret", PUBLIC, info=b"cam-1|7")
    for wrong in (
        lambda: enc.open_sealed(sealed, X25519PrivateKey.generate(), info=b"cam-1|7"),
        lambda: enc.open_sealed(sealed, KEY, info=b"cam-1|8"),
        lambda: enc.open_sealed(sealed[:-1], KEY, info=b"cam-1|7"),
        lambda: enc.open_sealed(sealed + b"\0", KEY, info=b"cam-1|7"),
        lambda: enc.open_sealed(bytes(32) + sealed[32:], KEY, info=b"cam-1|7"),  # a point of low order
    ):
        with pytest.raises(TrustError):
            wrong()


@pytest.mark.parametrize("public", ["", "zz" * 32, "ab" * 31, "00" * 32])
def test_bad_recipients_are_told(public: str) -> None:
    with pytest.raises(InputError):
        enc.seal(b"x", public, info=b"")


@settings(max_examples=60)
@given(st.binary(max_size=100), st.data())
def test_signatures_hold_only_for_their_bytes(message: bytes, data: st.DataObject) -> None:
    signature, public = enc.sign(SIGNER, message), enc.public_hex(SIGNER)
    assert len(signature) == enc.SIGNATURE_BYTES and signature == enc.sign(SIGNER, message)
    enc.verify(public, message, signature)
    at = data.draw(st.integers(0, 511))
    changed = bytearray(signature)
    changed[at // 8] ^= 1 << (at % 8)
    for pair in ((message + b"\0", signature), (message, bytes(changed)), (message, signature[:-1]), (message, b"")):
        with pytest.raises(TrustError):
            enc.verify(public, *pair)
    with pytest.raises(TrustError):
        enc.verify(enc.public_hex(Ed25519PrivateKey.generate()), message, signature)


def test_verify_refuses_what_is_no_key() -> None:
    with pytest.raises(InputError, match="expected 32 bytes, got 31"):
        enc.verify("ab" * 31, b"", bytes(64))


def test_key_files_hold_what_was_made(tmp_path: Path) -> None:
    signing, sealing = tmp_path / "device.key", tmp_path / "sealing.key"
    key, box = enc.new_signing_key(signing), enc.new_sealing_key(sealing)
    assert enc.public_hex(enc.load_signing_key(signing)) == enc.public_hex(key) == enc.public_hex(key.public_key())
    assert enc.public_hex(enc.load_sealing_key(sealing)) == enc.public_hex(box)
    assert [p.stat().st_mode & 0o777 for p in (signing, sealing)] == [0o600, 0o600]
    assert signing.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert sorted(os.listdir(tmp_path)) == ["device.key", "sealing.key"]  # no drafts left


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "k"
    before = enc.public_hex(enc.new_signing_key(path))
    with pytest.raises(InputError, match="a key is there already"):
        enc.new_signing_key(path)
    assert enc.public_hex(enc.load_signing_key(path)) == before and os.listdir(tmp_path) == ["k"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_keys_that_others_can_reach_are_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k"
    enc.new_sealing_key(path)
    path.chmod(mode)
    with pytest.raises(TrustError, match=f"{mode:04o}") as caught:
        enc.load_sealing_key(path)
    assert "chmod 600" in caught.value.next_step


def test_files_that_are_no_keys_are_told(tmp_path: Path) -> None:
    path = tmp_path / "k"
    with pytest.raises(InputError, match="no key file"):
        enc.load_signing_key(path)
    for text in (b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"x" * 10_000):
        path.write_bytes(text)
        path.chmod(0o600)
        with pytest.raises(InputError, match="not an unencrypted PEM"):
            enc.load_signing_key(path)
    locked = SIGNER.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pw")
    )
    path.write_bytes(locked)
    with pytest.raises(InputError, match="not an unencrypted PEM"):
        enc.load_signing_key(path)
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    with pytest.raises(StorageError, match="directory"):
        enc.load_signing_key(folder)


def test_the_kind_of_key_is_checked(tmp_path: Path) -> None:
    enc.new_sealing_key(tmp_path / "box")
    enc.new_signing_key(tmp_path / "pen")
    with pytest.raises(InputError, match="expected an Ed25519"):
        enc.load_signing_key(tmp_path / "box")
    with pytest.raises(InputError, match="expected an X25519"):
        enc.load_sealing_key(tmp_path / "pen")


def test_a_key_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        enc.new_signing_key(tmp_path / "missing" / "k")


def test_same_bytes() -> None:
    assert enc.same_bytes("ab", b"ab") and not enc.same_bytes("ab", "ac") and not enc.same_bytes("ab", "abc")
