"""The vault: golden bytes, tampering, rotation, power cuts at every disk operation, nonces over forks and crashes."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from worlds.disks import LOSSES, BrokenDisk, Lose, PowerCut, PowerDisk
from worlds.telemetry import Clock

from kasmina_edge.errors import InputError, LockedError, StorageError, TrustError
from kasmina_edge.safety.keystore import FolderKey, KeyFile
from kasmina_edge.safety.sealing import OVERHEAD_BYTES, open_with, seal_with, sealed_with
from kasmina_edge.safety.vault import RETIRE_AFTER_S, Sealer, Vault
from kasmina_edge.storage import hold_lock, use_disk, write_durable

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
KEY = bytes(range(32))


def make(folder: Path, **changes: object) -> Vault:
    data = folder / "data"
    return Vault.open(data / "vault", KeyFile(folder / "key", data), **changes)  # type: ignore[arg-type]


def counting() -> Callable[[int], bytes]:
    """Bytes that look random enough and are the same in every run."""
    numbers = itertools.count()
    return lambda size: (b"%032d" % next(numbers))[-size:]


def test_sealed_bytes_are_those_of_the_specification() -> None:
    """An independent reading of docs/spec/vault.md, with nothing of the vault's own code."""
    sealed = seal_with(KEY, 7, "outbox", b"twelve bytes", b"place", lambda size: b"s" * size)
    assert sealed[:8] == b"KSL1\0\0\0\7" and sealed[8:40] == b"s" * 32
    info = b"kasmina vault 1 seal\0\0\0\0\7outbox"
    both = HKDF(hashes.SHA256(), 44, b"s" * 32, info).derive(KEY)
    assert AESGCM(both[:32]).decrypt(both[32:], sealed[40:], sealed[:40] + b"place") == b"twelve bytes"
    assert len(sealed) == 12 + OVERHEAD_BYTES and sealed_with(sealed) == 7


def test_golden_bytes_still_open(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "vault_v1.json").read_text())
    key = tmp_path / "key"
    key.write_text(golden["kek"])
    key.chmod(0o600)
    (tmp_path / "data/vault").mkdir(parents=True)
    (tmp_path / "data/vault/keys.json").write_text(golden["keys.json"])
    vault = make(tmp_path)
    for case in golden["sealed"]:
        sealed, aad = bytes.fromhex(case["bytes"]), case["aad"].encode()
        assert vault.sealer(case["purpose"]).open(sealed, aad).decode() == case["plaintext"]
    assert [k.number for k in vault.inventory()] == [1, 2, 3]


@given(st.binary(max_size=200), st.binary(max_size=40), st.data())
def test_any_changed_byte_is_refused(plaintext: bytes, aad: bytes, data: st.DataObject) -> None:
    sealed = seal_with(KEY, 1, "p", plaintext, aad, os.urandom)
    assert open_with(KEY, "p", sealed, aad) == plaintext
    at = data.draw(st.integers(0, len(sealed) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = sealed[:at] + bytes([sealed[at] ^ flip]) + sealed[at + 1 :]
    cut = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
    for spoiled in (changed, cut, sealed + b"x", cut[1:]):
        with pytest.raises(TrustError):
            open_with(KEY, "p", spoiled, aad)
    for key, purpose, other in ((KEY, "q", aad), (KEY, "p", aad + b"x"), (KEY[::-1], "p", aad)):
        with pytest.raises(TrustError):
            open_with(key, purpose, sealed, other)


def test_a_sealer_opens_only_its_own_purpose(tmp_path: Path) -> None:
    vault = make(tmp_path)
    outbox, capture = vault.sealer("outbox"), vault.sealer("capture")
    sealed = outbox.seal(b"x", b"")
    assert make(tmp_path).sealer("outbox").open(sealed, b"") == b"x"  # another process
    with pytest.raises(TrustError, match="no key 1 for capture"):
        capture.open(sealed, b"")
    with pytest.raises(TrustError, match="at least 56"):
        outbox.open(b"KSL1", b"")
    with pytest.raises(InputError):
        vault.sealer("Not a word")


def test_rotation_keeps_old_data_readable_and_retiring_ends_it(tmp_path: Path) -> None:
    clock = Clock()
    vault, other = make(tmp_path, clock=clock), make(tmp_path, clock=clock)
    sealer, theirs = vault.sealer("outbox"), other.sealer("outbox")
    old = theirs.seal(b"old", b"")
    assert vault.rotate("outbox") == 2
    new = theirs.seal(b"new", b"")  # the other process follows by itself
    assert (sealed_with(old), sealed_with(new)) == (1, 2)
    assert [sealer.open(s, b"") for s in (old, new)] == [b"old", b"new"]
    assert vault.retire("outbox", in_use={1, 2}) == [] == vault.retire("outbox", in_use={2})  # too fresh
    clock.now += RETIRE_AFTER_S
    assert vault.retire("outbox", in_use={1}) == []
    assert vault.retire("outbox", in_use=()) == [1]  # the one in use for new data always stays
    for each in (sealer, theirs, make(tmp_path).sealer("outbox")):
        with pytest.raises(TrustError, match="there is no key 1"):
            each.open(old, b"")
        assert each.open(new, b"") == b"new"
    assert vault.rotate("outbox") == 3  # numbers are never used twice


def test_erasing_a_purpose_leaves_the_others(tmp_path: Path) -> None:
    vault = make(tmp_path)
    capture, outbox = vault.sealer("capture"), vault.sealer("outbox")
    frames, records = capture.seal(b"frame", b""), outbox.seal(b"record", b"")
    assert vault.erase("capture") == [1]
    with pytest.raises(TrustError):
        capture.open(frames, b"")
    with pytest.raises(TrustError, match="no key for capture"):
        capture.seal(b"more", b"")
    assert outbox.open(records, b"") == b"record"
    assert sealed_with(vault.sealer("capture").seal(b"anew", b"")) == 3


def test_the_key_ring_holds_no_key_in_the_clear_and_shows_any_change(tmp_path: Path) -> None:
    vault = make(tmp_path)
    vault.sealer("outbox")
    path = tmp_path / "data/vault/keys.json"
    good = path.read_bytes()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    secrets = [vault.newest("outbox")[1], bytes.fromhex((tmp_path / "key").read_text())]
    assert not any(s in good or s.hex().encode() in good for s in secrets)
    assert not any(s.hex() in repr([vault, vault.sealer("outbox"), vault.inventory()]) for s in secrets)
    value = json.loads(good)
    for change in ({"following": 9}, {"keys": []}, {"kek": "0" * 16}, {"mac": ""}, {"mac": "0" * 64}):
        path.write_bytes(json.dumps({**value, **change}, sort_keys=True, separators=(",", ":")).encode())
        with pytest.raises(TrustError, match=r"keys\.json"):
            make(tmp_path)
        with pytest.raises(TrustError, match=r"keys\.json"):
            vault.inventory()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(TrustError):
            make(tmp_path)
    path.write_bytes(good)
    assert [k.number for k in vault.inventory()] == [1]


def test_a_changed_ring_is_refused_at_every_use_and_never_gets_a_new_mac(tmp_path: Path) -> None:
    vault = make(tmp_path)
    sealer = vault.sealer("outbox")
    sealed = sealer.seal(b"x", b"")
    path = tmp_path / "data/vault/keys.json"
    good = path.read_bytes()
    changed = good.replace(b'"following":2', b'"following":9')
    path.write_bytes(changed)
    for _ in range(3):
        with pytest.raises(TrustError, match="changed by somebody"):
            sealer.seal(b"x", b"")
        with pytest.raises(StorageError, match="changed by somebody"):  # sealed data is not to blame
            sealer.open(sealed, b"")
        for change in (lambda: vault.rotate("outbox"), vault.rotate_kek, lambda: vault.retire("outbox", ())):
            with pytest.raises(TrustError, match="changed by somebody"):
                change()
    assert path.read_bytes() == changed != good
    path.write_bytes(good)
    assert sealer.open(sealed, b"") == b"x" and vault.rotate("outbox") == 2


def test_a_lost_ring_is_not_taken_for_a_new_vault(tmp_path: Path) -> None:
    vault = make(tmp_path)
    sealed = vault.sealer("outbox").seal(b"x", b"")
    path, mark = tmp_path / "data/vault/keys.json", tmp_path / "data/vault.made"
    good = path.read_bytes()
    path.unlink()
    for _ in range(2):
        with pytest.raises(StorageError, match="is gone"):
            vault.sealer("outbox").seal(b"x", b"")
        with pytest.raises(TrustError, match="missing") as caught:
            make(tmp_path)
        assert str(mark) in caught.value.next_step and not path.exists()
    shutil.rmtree(path.parent)
    with pytest.raises(TrustError, match="missing"):
        make(tmp_path)
    path.write_bytes(good)
    mark.unlink()  # the power went before it was made
    assert make(tmp_path).sealer("outbox").open(sealed, b"") == b"x" and mark.exists()


def test_a_running_process_follows_a_vault_that_was_made_anew(tmp_path: Path) -> None:
    vault = make(tmp_path)
    before = vault.sealer("outbox").seal(b"x", b"")
    (tmp_path / "data/vault/keys.json").unlink()
    (tmp_path / "data/vault.made").unlink()  # as the operator may do to begin anew
    anew = make(tmp_path).sealer("outbox")
    after = vault.sealer("outbox").seal(b"y", b"")
    assert sealed_with(before) == sealed_with(after) == 1  # the same number, another key
    assert anew.open(after, b"") == b"y"
    with pytest.raises(TrustError):
        vault.sealer("outbox").open(before, b"")


def test_another_key_is_refused_and_the_ring_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path).sealer("outbox")
    before = (tmp_path / "data/vault/keys.json").read_bytes()
    (tmp_path / "key").unlink()
    with pytest.raises(TrustError, match="the file keystore has none"):
        make(tmp_path)
    (tmp_path / "key").write_bytes(b"k" * 32)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(TrustError, match="wrapped under key"):
        make(tmp_path)
    assert (tmp_path / "data/vault/keys.json").read_bytes() == before


def test_a_rotated_kek_reaches_a_running_process(tmp_path: Path) -> None:
    vault, other = make(tmp_path), make(tmp_path)
    sealed = vault.sealer("outbox").seal(b"x", b"")
    before = (tmp_path / "key").read_bytes()
    vault.rotate_kek()
    assert (tmp_path / "key").read_bytes() != before
    assert other.sealer("outbox").open(sealed, b"") == make(tmp_path).sealer("outbox").open(sealed, b"") == b"x"
    (tmp_path / "key").write_bytes(before)
    with pytest.raises(TrustError):
        make(tmp_path)  # the old key opens nothing any more


class Raced(KeyFile):
    """Another process does something just before this one looks at the keys."""

    race: Callable[[], None] | None = None

    def candidates(self) -> list[bytes]:
        race, self.race = self.race, None
        if race is not None:
            with suppress(LockedError):
                race()
        return super().candidates()


def test_a_reader_is_not_overtaken_by_a_second_rotation(tmp_path: Path) -> None:
    """It has read a ring under one key; before it looks for that key, the next rotation must not take it away."""
    rotating = make(tmp_path, lock_wait_s=0.0)
    keystore = Raced(tmp_path / "key", tmp_path / "data")
    sealer = Vault.open(tmp_path / "data/vault", keystore).sealer("outbox")
    sealed = sealer.seal(b"x", b"")
    rotating.rotate_kek()
    keystore.race = rotating.rotate_kek
    assert sealer.open(sealed, b"") == b"x" and keystore.race is None


def test_a_vault_that_another_process_holds_is_not_waited_for_without_end(tmp_path: Path) -> None:
    vault = make(tmp_path, lock_wait_s=0.05)
    vault.sealer("outbox")
    with hold_lock(tmp_path / "data/vault/keys.lock"):
        for act in (lambda: make(tmp_path, lock_wait_s=0.05), lambda: vault.rotate("outbox"), vault.rotate_kek):
            with pytest.raises(LockedError, match=r"keys\.lock.*waited 0\.05 s"):
                act()
        assert vault.sealer("outbox").seal(b"x", b"")  # what changes nothing needs no lock


class InPlace(KeyFile):
    """Writes the new key over the old one, as one should not."""

    def prepare(self) -> bytes:
        write_durable(self._path, b"n" * 32)
        return b"n" * 32


def lost_after_cuts(tmp_path: Path, act: str, lose: Lose, keystore: type[KeyFile] = KeyFile) -> list[int]:
    """After which operations a power cut leaves a vault that no longer opens what it sealed, or seals no more."""

    def opened(folder: Path, name: str = "key") -> Vault:
        data = folder / "data"
        return Vault.open(data / "vault", keystore(folder / name, data), clock=Clock(Clock().now + 100.0))

    def prepare(folder: Path) -> bytes:
        folder.mkdir()
        (folder / "attic").mkdir()
        (folder / "data").mkdir()
        if act == "first":
            return b""
        vault = make(folder, clock=Clock())
        vault.sealer("outbox")
        sealed = vault.sealer("capture").seal(b"before", b"")
        if act == "retire":
            vault.rotate("outbox")
        return sealed

    def run(folder: Path) -> None:
        vault = opened(folder)
        vault.sealer("outbox")
        if act == "rotate":
            vault.rotate("outbox")
        elif act == "rotate_kek":
            vault.rotate_kek()
        elif act == "retire":
            assert vault.retire("outbox", in_use=()) == [1]
        elif act == "move_to":
            vault.move_to(keystore(folder / "other", folder / "data"))

    prepare(tmp_path / "count")
    disk = PowerDisk(tmp_path / "count/attic")
    with use_disk(disk):
        run(tmp_path / "count")
    assert len(disk.operations) >= 6 and not disk.unflushed()
    lost = []
    for cut in range(1, len(disk.operations) + 1):
        folder = tmp_path / f"cut-{cut}"
        sealed = prepare(folder)
        with pytest.raises(PowerCut), use_disk(PowerDisk(folder / "attic", cut, lose, seed=cut)):
            run(folder)
        try:
            vault = reopened(folder)
            if sealed:
                assert vault.sealer("capture").open(sealed, b"") == b"before"
            again = vault.sealer("outbox").seal(b"after", b"")
            assert reopened(folder).sealer("outbox").open(again, b"") == b"after"
        except (TrustError, AssertionError):
            lost.append(cut)
        shutil.rmtree(folder)
    return lost


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("act", ["first", "rotate", "rotate_kek", "retire", "move_to"])
def test_power_cut_at_every_operation(tmp_path: Path, act: str, lose: Lose) -> None:
    """After each the vault opens, and what was sealed before opens - but for what was to be destroyed."""
    assert lost_after_cuts(tmp_path, act, lose) == []


def test_the_cuts_above_would_see_a_key_that_is_written_over(tmp_path: Path) -> None:
    assert lost_after_cuts(tmp_path, "rotate_kek", "nothing", InPlace)


def reopened(folder: Path) -> Vault:
    """With the key that was asked for last, else with the one before, as `open_vault` tries them."""
    try:
        return make(folder)
    except TrustError:
        data = folder / "data"
        return Vault.open(data / "vault", KeyFile(folder / "other", data))


def test_a_failing_disk_changes_nothing(tmp_path: Path) -> None:
    vault = make(tmp_path)
    vault.sealer("outbox")
    for at in range(1, 6):
        with pytest.raises(StorageError), use_disk(BrokenDisk(at)):
            vault.rotate("outbox")
            raise StorageError("the count is short")
        assert vault.sealer("outbox").open(vault.sealer("outbox").seal(b"x", b""), b"") == b"x"
        assert make(tmp_path).inventory() == vault.inventory()


def used(sealed: Iterable[bytes], keys: dict[int, bytes]) -> list[bytes]:
    """AES key and nonce of each message, worked out from the specification."""
    found = []
    for message in sealed:
        info = b"kasmina vault 1 seal\0" + message[4:8] + b"outbox"
        found.append(HKDF(hashes.SHA256(), 44, message[8:40], info).derive(keys[sealed_with(message)]))
    return found


def crash_and_fork(tmp_path: Path, random_bytes: Callable[[int], bytes]) -> list[bytes]:
    """Messages of a vault through everything that makes counters repeat: threads, forks, a restored snapshot."""
    vault = make(tmp_path, random_bytes=random_bytes)
    sealer = vault.sealer("outbox")
    messages = [sealer.seal(b"m", b"") for _ in range(20)]
    snapshot = tmp_path / "snapshot"
    shutil.copytree(tmp_path / "data", snapshot)

    def forked(sealer: Sealer, pipe: object) -> None:
        pipe.send([sealer.seal(b"m", b"") for _ in range(20)])  # type: ignore[attr-defined]

    context = multiprocessing.get_context("fork")
    for _ in range(3):
        near, far = context.Pipe()
        child = context.Process(target=forked, args=(sealer, far))
        child.start()
        messages += near.recv()
        child.join()
    threads = [
        threading.Thread(target=lambda: messages.extend(sealer.seal(b"m", b"") for _ in range(20))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shutil.rmtree(tmp_path / "data")
    snapshot.rename(tmp_path / "data")  # the disk is put back to what it was
    messages += [make(tmp_path, random_bytes=random_bytes).sealer("outbox").seal(b"m", b"") for _ in range(20)]
    return used(messages, {1: vault.newest("outbox")[1]})


def test_no_key_meets_a_nonce_twice_over_crash_fork_and_snapshot(tmp_path: Path) -> None:
    pairs = crash_and_fork(tmp_path, os.urandom)
    assert len(pairs) == 140 == len(set(pairs)) == len({p[:32] for p in pairs})


def test_the_check_above_sees_a_generator_that_repeats(tmp_path: Path) -> None:
    pairs = crash_and_fork(tmp_path, counting())
    assert len(set(pairs)) < len(pairs)


SEAL = """
import sys
from pathlib import Path
from kasmina_edge.safety.keystore import KeyFile
from kasmina_edge.safety.vault import Vault
folder = Path(sys.argv[1])
vault = Vault.open(folder / "data/vault", KeyFile(folder / "key", folder / "data"))
sealer = vault.sealer("outbox")
if sys.argv[2] == "rotate":
    for _ in range(5): vault.rotate("outbox")
for i in range(20): print(sealer.seal(b"%d" % i, b"").hex())
"""


def test_several_processes_make_one_vault_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SEAL, str(tmp_path), act], env=environment, stdout=subprocess.PIPE, text=True
        )
        for act in ("seal", "rotate", "rotate")
    ]
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    sealer = make(tmp_path).sealer("outbox")
    for output in outputs:
        assert [sealer.open(bytes.fromhex(line), b"") for line in output.split()] == [b"%d" % i for i in range(20)]
    assert [k.number for k in make(tmp_path).inventory()] == list(range(1, 12))


def test_the_fallback_is_said_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Vault.open(tmp_path / "vault", FolderKey(tmp_path))
    assert "a stolen disk is readable" in caplog.text
    assert bytes.fromhex((tmp_path / "vault/kek").read_text()).hex() not in caplog.text
