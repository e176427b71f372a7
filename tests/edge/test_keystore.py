"""Keystores: credentials, key files, the fallback, and a TPM 2 - a software one where it is installed."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from worlds.disks import PowerCut, PowerDisk

from kasmina_edge.errors import InputError, KasminaError, StorageError, TrustError
from kasmina_edge.safety.keystore import (
    FolderKey,
    KeyFile,
    Keystore,
    SystemdCredential,
    choose_keystore,
    describe_keystore,
    on_one_disk,
)
from kasmina_edge.safety.tpm import TOOLS, TpmKey, run_program
from kasmina_edge.safety.vault import Vault, open_vault
from kasmina_edge.storage import use_disk
from kasmina_edge.telemetry.outbox import Outbox

KEY = bytes(range(32))


class FakeTpm:
    """The tools' files and pipes, with a TPM that seals by exclusive or."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.dead = False

    def __call__(self, arguments: Sequence[str], given: bytes) -> bytes:
        options = dict(zip(arguments[2::2], arguments[3::2], strict=False))
        self.calls.append(arguments[0])
        assert not any(KEY.hex() in a for a in arguments) and "-Q" in arguments
        if self.dead:
            raise StorageError("tpm2_unseal ended with 1: no TPM")
        if arguments[0] == "tpm2_createprimary":
            Path(options["-c"]).write_bytes(b"primary")
        elif arguments[0] == "tpm2_create":
            Path(options["-u"]).write_bytes(b"public")
            Path(options["-r"]).write_bytes(bytes(b ^ 0x5A for b in given))
        elif arguments[0] == "tpm2_load":
            assert Path(options["-u"]).read_bytes() == b"public"
            Path(options["-c"]).write_bytes(Path(options["-r"]).read_bytes())
        else:
            return bytes(b ^ 0x5A for b in Path(options["-c"]).read_bytes())
        return b""


class Fixed(SystemdCredential):
    """A credential folder that the test fills by hand."""

    def create(self) -> bytes:
        return put(self._folder / "kasmina-kek", os.urandom(32))

    def prepare(self) -> bytes:
        return put(self._folder / "kasmina-kek-next", os.urandom(32))

    def settle(self, kek: bytes) -> None:
        super().settle(kek)
        successor = self._folder / "kasmina-kek-next"
        if successor.exists() and successor.read_bytes() == kek:
            successor.rename(self._folder / "kasmina-kek")


def put(path: Path, data: bytes, mode: int = 0o600) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return data


def subjects(folder: Path) -> list[Keystore]:
    data = folder / "data"
    found = [
        Fixed(folder / "credentials"),
        KeyFile(folder / "usb/key", data),
        FolderKey(data),
        TpmKey(data / "vault/kek.tpm", run=FakeTpm()),
    ]
    for place in ("credentials", "usb", "data"):
        (folder / place).mkdir()
    return found


def test_every_keystore_keeps_the_same_promise(tmp_path: Path) -> None:
    kinds = set()
    for keystore in subjects(tmp_path):
        assert keystore.candidates() == []
        key = keystore.create()
        assert len(key) == 32 and keystore.candidates() == [key]
        successor = keystore.prepare()
        assert successor != key and keystore.candidates() == [key, successor]  # both, until it is settled
        keystore.settle(successor)
        keystore.settle(successor)
        assert keystore.candidates() == [successor]
        keystore.prepare()
        keystore.settle(successor)  # a rotation that was cut off is forgotten
        state = keystore.describe(tmp_path / "data")
        assert state.has_key and state.kind == keystore.kind and key.hex() not in state.sentence
        vault = Vault.open(tmp_path / f"vault-{keystore.kind}", keystore)
        sealed = vault.sealer("outbox").seal(b"x", b"")
        vault.rotate_kek()
        assert Vault.open(vault.folder, keystore).sealer("outbox").open(sealed, b"") == b"x"
        kinds.add(keystore.kind)
    assert kinds == {"systemd", "file", "folder", "tpm2"}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    put(tmp_path / "key", KEY, mode)
    with pytest.raises(TrustError, match=f"mode {mode:04o}"):
        KeyFile(tmp_path / "key", tmp_path / "data").candidates()


@pytest.mark.parametrize("data", [b"", b"short", KEY + b"x", b"z" * 64, KEY.hex().encode()[:-2], b"\xff" * 300])
def test_what_is_no_key_is_refused_and_not_told(tmp_path: Path, data: bytes) -> None:
    put(tmp_path / "key", data)
    with pytest.raises(InputError, match=f"{min(len(data), 257)} bytes, expected 32 bytes or 64") as caught:
        KeyFile(tmp_path / "key", tmp_path / "data").candidates()
    assert len(data) < 5 or data.decode("latin-1") not in str(caught.value)


def test_raw_and_hexadecimal_keys_are_the_same(tmp_path: Path) -> None:
    for number, data in enumerate((KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\n")):
        put(tmp_path / f"key{number}", data)
        assert KeyFile(tmp_path / f"key{number}", tmp_path / "data").candidates() == [KEY]


def test_a_key_file_may_not_lie_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for path in (tmp_path / "data/key", tmp_path / "data/sub/../key", tmp_path / "link/key", Path("key")):
        with pytest.raises(InputError, match="outside the data folder"):
            KeyFile(path, tmp_path / "data")


def test_the_choice(tmp_path: Path) -> None:
    put(tmp_path / "credentials/kasmina-kek", KEY)
    given = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    empty = {"CREDENTIALS_DIRECTORY": str(tmp_path / "nothing")}
    cases = [
        ({"environ": {}}, "folder"), ({"environ": empty}, "folder"), ({"environ": given}, "systemd"),
        ({"environ": given, "key_file": "/k/key"}, "file"), ({"environ": given, "kind": "folder"}, "folder"),
        ({"environ": {}, "kind": "tpm2"}, "tpm2"), ({"environ": {}, "kind": "systemd"}, "systemd"),
    ]  # fmt: skip
    for arguments, kind in cases:
        assert choose_keystore(tmp_path / "data", **arguments).kind == kind  # type: ignore[arg-type]
    for kind, text in (("file", "names none"), ("vault", "expected auto, systemd")):
        with pytest.raises(InputError, match=text):
            choose_keystore(tmp_path / "data", kind=kind, environ={})
    with pytest.raises(InputError, match="no such credential") as caught:
        open_vault(tmp_path / "data", kind="systemd", environ=empty)
    assert "systemd-creds encrypt" in caught.value.next_step


def test_the_fallback_is_refused_where_an_external_key_is_required(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="require_external_key"):
        open_vault(tmp_path, require_external=True, environ={})
    assert not (tmp_path / "vault").exists()
    state = describe_keystore(tmp_path, environ={})
    assert state.stolen_disk_readable and "a stolen disk is readable" in state.sentence


def test_a_vault_moves_from_the_fallback_to_the_key_it_is_given(tmp_path: Path) -> None:
    data, key = tmp_path / "data", str(tmp_path / "key")
    sealed = open_vault(data, environ={}).sealer("outbox").seal(b"x", b"")
    assert (data / "vault/kek").exists()
    vault = open_vault(data, key_file=key, require_external=True, environ={})
    assert vault.sealer("outbox").open(sealed, b"") == b"x" and not (data / "vault/kek").exists()
    with pytest.raises(TrustError, match="wrapped under key"):
        open_vault(data, environ={})  # it never moves back by itself, nor makes a new vault over the old one
    assert open_vault(data, key_file=key, environ={}).sealer("outbox").open(sealed, b"") == b"x"


def test_a_move_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    data, key = tmp_path / "data", tmp_path / "key"
    fallback = FolderKey(data)
    vault = Vault.open(data / "vault", fallback)
    sealed = vault.sealer("outbox").seal(b"x", b"")
    kept = (data / "vault/kek").read_bytes()
    vault.move_to(KeyFile(key, data))
    assert (data / "vault/kek").read_bytes() == kept  # the power went before it was deleted
    assert open_vault(data, key_file=str(key), environ={}).sealer("outbox").open(sealed, b"") == b"x"
    assert not (data / "vault/kek").exists()


def copies(folder: Path) -> list[str]:
    """Hidden files, which are what drafts are."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_no_copy_of_a_key_outlives_a_power_cut(tmp_path: Path) -> None:
    """A draft that a cut left is removed with the next opening, also when that moves the vault away from its key."""
    left = 0
    for cut in range(1, 80):
        data = tmp_path / f"data{cut}"
        (tmp_path / f"attic{cut}").mkdir()
        done = False
        with suppress(PowerCut), use_disk(PowerDisk(tmp_path / f"attic{cut}", cut, "nothing", seed=cut)):
            Vault.open(data / "vault", FolderKey(data)).rotate_kek()
            done = True
        if done:
            break
        left += bool((data / "vault").is_dir() and copies(data / "vault"))
        key_file = str(tmp_path / f"key{cut}") if cut % 2 else ""
        open_vault(data, key_file=key_file, environ={})
        names = {path.name for path in (data / "vault").iterdir()}
        assert names == {"keys.json", "keys.lock"} | ({"kek"} if not key_file else set()), cut
    assert done and left >= 4


def test_copies_beside_an_external_key_are_removed_too(tmp_path: Path) -> None:
    for name in (".key.71.new", ".key.next.72.new", "..key.71.new.71-9.tmp"):
        put(tmp_path / name, KEY)
    put(tmp_path / ".keyring.new", b"somebody else's")
    Vault.open(tmp_path / "data/vault", KeyFile(tmp_path / "key", tmp_path / "data"))
    assert copies(tmp_path) == [".keyring.new"]


def test_the_fallback_key_opens_nothing_that_was_sealed_after_the_move(tmp_path: Path) -> None:
    data, stolen = tmp_path / "data", tmp_path / "stolen"
    before = open_vault(data, environ={}).sealer("outbox").seal(b"before", b"")
    shutil.copytree(data, stolen)  # what flash memory may still hold
    sealer = open_vault(data, key_file=str(tmp_path / "key"), environ={}).sealer("outbox")
    after = sealer.seal(b"after", b"")
    assert [sealer.open(s, b"") for s in (before, after)] == [b"before", b"after"]
    thief = open_vault(stolen, environ={}).sealer("outbox")
    assert thief.open(before, b"") == b"before"
    with pytest.raises(TrustError, match="no key 2"):
        thief.open(after, b"")


def test_a_process_that_ran_while_the_key_moved_is_told_to_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    running = open_vault(data, environ={}).sealer("outbox")
    outbox = Outbox(data / "outbox.db", sealer=running)
    outbox.append("alert", b"x", priority=2)
    open_vault(data, key_file=str(tmp_path / "key"), environ={})
    with pytest.raises(TrustError, match="wrapped under key") as caught:
        running.seal(b"y", b"")
    assert "restart every process" in caught.value.next_step
    with pytest.raises(StorageError, match="wrapped under key"):
        outbox.peek()
    outbox.close()
    sealer = open_vault(data, key_file=str(tmp_path / "key"), environ={}).sealer("outbox")
    again = Outbox(data / "outbox.db", sealer=sealer)
    assert [e.payload for e in again.peek()] == [b"x"] and again.dropped() == 0  # it was not the data's fault


def test_several_may_move_a_vault_at_once(tmp_path: Path) -> None:
    for each in range(5):
        data, key_file = tmp_path / f"data{each}", str(tmp_path / f"key{each}")
        sealed = open_vault(data, environ={}).sealer("outbox").seal(b"x", b"")
        together = threading.Barrier(4)

        def move(data: Path = data, key_file: str = key_file, together: threading.Barrier = together) -> Vault:
            together.wait(10)
            return open_vault(data, key_file=key_file, environ={})

        with ThreadPoolExecutor(4) as pool:
            vaults = [f.result(30) for f in [pool.submit(move) for _ in range(4)]]
        assert [v.sealer("outbox").open(sealed, b"") for v in vaults] == [b"x"] * 4


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    for path in (tmp_path / "fifo", tmp_path / "folder", Path("/dev/zero")):
        with pytest.raises(InputError, match="not an ordinary file"):
            open_vault(tmp_path / "data", key_file=str(path), environ={})
    data = tmp_path / "other"
    open_vault(data, environ={})
    ring = data / "vault/keys.json"
    for make in (Path.mkdir, os.mkfifo):
        ring.unlink()
        make(ring)
        for key_file in ("", str(tmp_path / "key")):  # opened, and moved away from the fallback
            with pytest.raises(StorageError, match=r"keys\.json: not an ordinary file"):
                open_vault(data, key_file=key_file, environ={})
        if ring.is_dir():
            ring.rmdir()
            ring.touch()


def test_a_key_is_made_only_where_there_is_a_folder_and_a_shared_disk_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, key = tmp_path / "data", tmp_path / "stick/key"
    with pytest.raises(InputError, match="there is no folder") as caught:
        open_vault(data, key_file=str(key), environ={})
    assert "Mount the medium" in caught.value.next_step and not key.parent.exists()
    key.parent.mkdir()
    open_vault(data, key_file=str(key), environ={})
    assert "on the same disk as the data: a stolen disk is readable" in caplog.text and "not mounted" in caplog.text
    if not on_one_disk(Path("/dev/shm"), tmp_path):
        caplog.clear()
        with TemporaryDirectory(dir="/dev/shm") as other:
            open_vault(tmp_path / "data2", key_file=f"{other}/key", environ={})
        assert "stolen disk" not in caplog.text


def test_one_disk_or_two(tmp_path: Path) -> None:
    assert on_one_disk(tmp_path, tmp_path / "not/there/yet") is True
    assert on_one_disk(tmp_path, Path("/proc")) is None  # no disk at all: cannot be told
    state = KeyFile(tmp_path / "key", tmp_path / "data").describe(tmp_path / "data")
    assert state.stolen_disk_readable is True and "on the same disk" in state.sentence and not state.has_key


def test_a_missing_or_broken_tpm_is_told(tmp_path: Path) -> None:
    state = TpmKey(tmp_path / "kek.tpm", which=lambda name: None).describe(tmp_path)
    assert "tpm2_createprimary" in state.sentence and "install tpm2-tools" in state.sentence
    tpm = FakeTpm()
    keystore = TpmKey(tmp_path / "kek.tpm", run=tpm)
    keystore.create()
    assert tpm.calls == ["tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_unseal"]
    tpm.dead = True
    with pytest.raises(StorageError, match="no TPM"):
        keystore.candidates()
    for spoiled in (b"", b"[]", b"{}", b'{"format":2,"public":"","private":""}', b'{"public":"xx","private":""}'):
        (tmp_path / "kek.tpm").write_bytes(spoiled)
        with pytest.raises(InputError, match="not a sealed TPM object"):
            keystore.candidates()
    with pytest.raises(StorageError, match="FileNotFoundError"):
        run_program(["kasmina-no-such-program"], b"")
    with pytest.raises(StorageError, match="ended with 1"):
        run_program(["false"], KEY)


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A software TPM 2 on a Unix socket, and the environment that points the tools at it."""
    missing = [name for name in ("swtpm", *TOOLS) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"NO REAL TPM TEST: {', '.join(missing)} not found; apt-get install swtpm tpm2-tools")
    (tmp_path / "tpm").mkdir()
    control = tmp_path / "tpm/s.ctrl"
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path / 'tpm'}", "--flags", "startup-clear",
         "--server", f"type=unixio,path={tmp_path / 'tpm/s'}", "--ctrl", f"type=unixio,path={control}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 10
        while not control.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        yield {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={tmp_path / 'tpm/s'}"}
    finally:
        process.terminate()
        process.wait(10)


def test_a_software_tpm(swtpm: dict[str, str], tmp_path: Path) -> None:
    def run(arguments: Sequence[str], given: bytes) -> bytes:
        done = subprocess.run(arguments, input=given, capture_output=True, env=swtpm, timeout=60)
        if done.returncode:
            raise StorageError(f"{arguments[0]}: {done.stderr.decode()}")
        subprocess.run(["tpm2_flushcontext", "-t"], env=swtpm, capture_output=True, timeout=60)  # no resource manager
        return done.stdout

    keystore = TpmKey(tmp_path / "data/vault/kek.tpm", run=run)
    vault = Vault.open(tmp_path / "data/vault", keystore)
    sealed = vault.sealer("outbox").seal(b"x", b"")
    again = Vault.open(tmp_path / "data/vault", TpmKey(tmp_path / "data/vault/kek.tpm", run=run))
    assert again.sealer("outbox").open(sealed, b"") == b"x"
    again.rotate_kek()
    assert vault.sealer("outbox").open(sealed, b"") == b"x"
    stored = (tmp_path / "data/vault/kek.tpm").read_bytes()
    assert keystore.candidates()[0].hex().encode() not in stored


def test_no_secret_in_the_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for keystore in subjects(tmp_path):
        vault = Vault.open(tmp_path / f"vault-{keystore.kind}", keystore)
        vault.sealer("outbox").seal(b"a secret plaintext", b"")
        vault.rotate_kek()
        told = caplog.text + "".join(map(str, (vault, keystore)))
        secrets = [*keystore.candidates(), vault.newest("outbox")[1]]
        assert not any(s.hex() in told or repr(s)[2:-1] in told for s in secrets) and "plaintext" not in told
    assert issubclass(TrustError, KasminaError)
