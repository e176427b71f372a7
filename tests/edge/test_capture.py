"""Captured inputs: the plan's word, the budget over restarts and processes, sealing, signature, binding."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from worlds.disks import LOSSES, FullDisk, Lose, PowerCut, PowerDisk
from worlds.telemetry import BUNDLE, NOW, Clock, make_frame, make_plan

from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.change_plan import CaptureBudget, CaptureSampling, Erasure
from kasmina_edge.errors import InputError, LockedError, StorageError, TrustError
from kasmina_edge.safety.encryption import public_hex, seal
from kasmina_edge.storage import hold_lock, use_disk
from kasmina_edge.telemetry.capture import (
    CaptureHeader,
    CaptureStore,
    frame_digest,
    open_capture,
    read_header,
    sign_capture,
    verify_capture,
)

ROOT = Path(__file__).resolve().parents[2]
BOX = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PEN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEN_PUBLIC = public_hex(PEN)
PLAN = make_plan(public_hex(BOX))


def make_store(folder: Path, plan: Any = PLAN, device: str = "cam-1") -> CaptureStore:
    return CaptureStore(folder / "capture", plan, device, Clock())


def test_a_frame_comes_back_as_it_was(tmp_path: Path) -> None:
    store, frame = make_store(tmp_path), make_frame()
    digest = store.keep(frame, bundle=BUNDLE)
    (item,) = store.pending()
    opened = open_capture(store.upload(item, PEN), BOX, PEN_PUBLIC)
    assert digest == frame_digest(frame) == opened.digest
    assert np.array_equal(opened.array, frame) and opened.array.dtype == frame.dtype
    assert (opened.device, opened.bundle, opened.sequence, opened.at_s) == ("cam-1", BUNDLE, 0, NOW)
    assert store.upload(item, PEN) == store.upload(item, PEN)  # a repeated upload is the same message
    assert read_header(store.payload(item)).info() == f"kasmina-capture-v1|cam-1|{BUNDLE}|0".encode()
    store.forget(item)
    store.forget(item)
    assert store.pending() == []
    with pytest.raises(StorageError):
        store.payload(item)


def test_nothing_readable_is_on_disk(tmp_path: Path) -> None:
    frame = np.full((16, 16, 1), 0.73125, np.float32)
    store = make_store(tmp_path)
    digest = store.keep(frame, bundle=BUNDLE)
    assert digest is not None
    for path in (tmp_path / "capture").iterdir():
        data = path.read_bytes()
        assert frame.tobytes()[:16] not in data and digest.encode() not in data and bytes.fromhex(digest) not in data
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "plan",
    [
        None,
        make_plan(public_hex(BOX), capture=None),
        make_plan(None),
        make_plan(public_hex(BOX), capture=CaptureBudget(max_frames=0, max_bytes=10**6)),
    ],
)
def test_no_plan_no_capture(tmp_path: Path, plan: Any) -> None:
    store = make_store(tmp_path, plan)
    assert store.keep(make_frame(), bundle=BUNDLE) is None
    assert store.pending() == [] and store.remaining()[0] == 0


def test_the_frame_budget_holds_over_restarts_and_uploads(tmp_path: Path) -> None:
    kept = 0
    for i in range(9):
        store = make_store(tmp_path)
        kept += store.keep(make_frame(i), bundle=BUNDLE) is not None
        for item in store.pending():
            store.forget(item)
    assert kept == 5 and make_store(tmp_path).remaining()[0] == 0


def test_the_byte_budget_counts_what_is_on_disk(tmp_path: Path) -> None:
    first = make_store(tmp_path / "first")
    first.keep(make_frame(), bundle=BUNDLE)
    size = len(first.payload(0))
    plan = make_plan(public_hex(BOX), capture=CaptureBudget(max_frames=100, max_bytes=2 * size + size // 2))
    store = make_store(tmp_path, plan)
    assert [store.keep(make_frame(i), bundle=BUNDLE) is not None for i in range(4)] == [True, True, False, False]
    assert store.remaining() == (98, size // 2)


def test_another_budget_is_a_new_one_and_an_older_plan_brings_none(tmp_path: Path) -> None:
    newer = make_plan(public_hex(BOX), serial=2, capture=PLAN.capture.model_copy(update={"renewal": 1}))  # type: ignore[union-attr]
    assert all(make_store(tmp_path).keep(make_frame(i), bundle=BUNDLE) for i in range(5))
    assert make_store(tmp_path, newer).remaining()[0] == 5
    assert make_store(tmp_path, newer).keep(make_frame(), bundle=BUNDLE) is not None
    assert make_store(tmp_path).keep(make_frame(), bundle=BUNDLE) is None  # no flipping back and forth
    assert make_store(tmp_path).remaining() == (0, 0)
    assert make_store(tmp_path, newer).remaining()[0] == 4
    assert make_store(tmp_path).pending() == [0, 1, 2, 3, 4, 5]  # sequences go on


def test_a_plan_that_is_newer_for_another_reason_renews_no_budget(tmp_path: Path) -> None:
    """An erasure for another device, or another way to sample, must not let everybody keep as much again."""
    assert all(make_store(tmp_path).keep(make_frame(i), bundle=BUNDLE) for i in range(4))
    assert PLAN.capture is not None
    sampled = PLAN.capture.model_copy(update={"sampling": CaptureSampling()})
    elsewhere = Erasure(id="e", device="cam-9", to_s=1.0)
    newer = make_plan(public_hex(BOX), serial=2, capture=sampled, erasures=(elsewhere,))
    assert make_store(tmp_path, newer).remaining()[0] == 1
    assert make_store(tmp_path, newer).keep(make_frame(), bundle=BUNDLE) is not None
    assert make_store(tmp_path, newer).keep(make_frame(), bundle=BUNDLE) is None
    assert make_store(tmp_path).remaining() == (0, 0)


def test_a_ledger_from_before_budgets_had_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "capture").mkdir()
    (tmp_path / "capture/ledger.json").write_bytes(
        b'{"next_sequence":4,"spent":{"digits":{"bytes":10,"frames":4,"serial":1,"since_s":%.1f}}}' % NOW
    )
    assert make_store(tmp_path).remaining()[0] == 1
    assert make_store(tmp_path, make_plan(public_hex(BOX), serial=2)).remaining()[0] == 5  # as it was promised then
    assert make_store(tmp_path).keep(make_frame(), bundle=BUNDLE) is not None
    assert make_store(tmp_path, make_plan(public_hex(BOX), serial=2)).remaining()[0] == 0


def test_who_holds_the_folder_too_long_is_not_waited_for(tmp_path: Path) -> None:
    make_store(tmp_path).keep(make_frame(), bundle=BUNDLE)
    store = CaptureStore(tmp_path / "capture", PLAN, "cam-1", Clock(), lock_wait_s=0.05)
    with hold_lock(tmp_path / "capture/.lock"):
        for work in (
            lambda: store.keep(make_frame(1), bundle=BUNDLE),
            lambda: store.erase(Erasure(id="r", to_s=9e9)),
            lambda: store.remember_erasures(["r"]),
        ):
            with pytest.raises(LockedError, match=r"capture/\.lock"):
                work()
    assert store.pending() == [0] and store.keep(make_frame(1), bundle=BUNDLE) is not None


@pytest.mark.parametrize("at_s", [float("nan"), float("inf"), float("-inf")])
def test_a_moment_that_is_none_is_the_callers_fault(tmp_path: Path, at_s: float) -> None:
    with pytest.raises(InputError, match="at_s is"):
        make_store(tmp_path).keep(make_frame(), bundle=BUNDLE, at_s=at_s)


@pytest.mark.parametrize(
    "field, value", [("device", "cam-2"), ("bundle", "e" * 64), ("sequence", 8), ("at_s", NOW + 1)]
)
def test_a_frame_cannot_be_moved(tmp_path: Path, field: str, value: Any) -> None:
    """Not even by the device's own key holder: the sealed bytes are bound, beside the signature over the header."""
    store = make_store(tmp_path)
    store.keep(make_frame(), bundle=BUNDLE)
    item = store.payload(0)
    header = read_header(item)
    old, new = header.to_bytes(), header.model_copy(update={field: value}).to_bytes()
    moved = item[:4] + len(new).to_bytes(2, "big") + new + item[6 + len(old) :]
    with pytest.raises(TrustError, match="signature"):
        open_capture(moved + sign_capture(item, PEN)[-64:], BOX, PEN_PUBLIC)
    if field != "at_s":  # the time is the device's own word
        with pytest.raises(TrustError, match="bound to something else"):
            open_capture(sign_capture(moved, PEN), BOX, PEN_PUBLIC)


def test_another_device_or_another_controller_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.keep(make_frame(), bundle=BUNDLE)
    payload = store.upload(0, PEN)
    with pytest.raises(TrustError, match="signature"):
        open_capture(payload, BOX, public_hex(Ed25519PrivateKey.generate()))
    with pytest.raises(TrustError, match="another key"):
        open_capture(payload, X25519PrivateKey.generate(), PEN_PUBLIC)
    with pytest.raises(TrustError):
        open_capture(store.payload(0), BOX, PEN_PUBLIC)  # unsigned
    assert verify_capture(payload, PEN_PUBLIC).sequence == 0


@settings(max_examples=60)
@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    payload = bytearray(PAYLOAD)
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TrustError):
        open_capture(bytes(payload), BOX, PEN_PUBLIC)
    with pytest.raises(TrustError):
        open_capture(bytes(PAYLOAD[:at]), BOX, PEN_PUBLIC)


@given(st.binary(max_size=300))
def test_garbage_is_refused(garbage: bytes) -> None:
    for payload in (garbage, b"KCF1" + garbage):
        with pytest.raises(TrustError):
            open_capture(payload, BOX, PEN_PUBLIC)


def test_a_device_that_seals_something_else_is_told() -> None:
    header = CaptureHeader(device="cam-1", bundle="b", sequence=0, at_s=0.0)
    text = header.to_bytes()
    for plaintext in (b"no arrays", b""):
        item = b"KCF1" + len(text).to_bytes(2, "big") + text + seal(plaintext, public_hex(BOX), info=header.info())
        with pytest.raises(TrustError, match="capture 0 of cam-1"):
            open_capture(sign_capture(item, PEN), BOX, PEN_PUBLIC)


@given(arrays(st.sampled_from(["<f4", "<f8", "|u1", "<i2"]), array_shapes(max_dims=3, max_side=4)))
def test_digests_name_values_not_layouts(array: np.ndarray) -> None:
    digest = frame_digest(array)
    assert frame_digest(np.asfortranarray(array)) == digest
    assert frame_digest(array.astype(array.dtype.newbyteorder(">"))) == digest
    assert frame_digest(array[None]) != digest
    assert frame_digest(np.concatenate([array.ravel(), array.ravel()[:1]])) != digest


def test_digest_is_the_documented_one() -> None:
    frame = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = hashlib.sha256(b"kasmina-frame-v1\0<f4\0[2, 3]\0" + frame.tobytes()).hexdigest()
    assert frame_digest(frame) == expected
    with pytest.raises(InputError, match="dtype"):
        frame_digest(np.array(["a"]))


def test_frames_that_cannot_be_sent_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can be captured"):
        make_store(tmp_path).keep(np.zeros((256, 256, 1), np.float32), bundle=BUNDLE)
    with pytest.raises(InputError, match=r"bundle 'a\|b' is not a name"):
        make_store(tmp_path).keep(make_frame(), bundle="a|b")
    assert make_store(tmp_path).remaining()[0] == 5


def test_a_full_disk_keeps_nothing_and_counts_safely(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.keep(make_frame(), bundle=BUNDLE)
    with use_disk(FullDisk(0)), pytest.raises(StorageError, match="no space"):
        store.keep(make_frame(1), bundle=BUNDLE)
    assert store.pending() == [0]
    assert store.keep(make_frame(1), bundle=BUNDLE) is not None


@pytest.mark.parametrize("lose", LOSSES)
def test_a_power_cut_loses_no_kept_frame_and_repeats_no_sequence(tmp_path: Path, lose: Lose) -> None:
    for cut in range(1, 100):
        folder, attic = tmp_path / str(cut), tmp_path / f"attic-{cut}"
        attic.mkdir()
        kept: list[str | None] = []
        store = make_store(folder)
        kept.append(store.keep(make_frame(0), bundle=BUNDLE))
        disk = PowerDisk(attic, cut_after=cut, lose=lose, seed=cut)
        try:
            with use_disk(disk):
                kept.append(store.keep(make_frame(1), bundle=BUNDLE))
        except PowerCut:
            pass
        after = make_store(folder)
        before = [open_capture(after.upload(i, PEN), BOX, PEN_PUBLIC) for i in after.pending()]
        assert set(kept) <= {f.digest for f in before}
        assert after.keep(make_frame(2), bundle=BUNDLE) is not None
        assert after.pending()[-1] > max(f.sequence for f in before)
        assert not list((folder / "capture").glob("*.tmp")) and after.remaining()[0] <= 5 - len(after.pending())
        if len(disk.operations) < cut:
            assert cut > 8  # the cuts reached the end of the work
            return
    raise AssertionError("the work never ended")


def test_a_spoiled_ledger_stops_capture(tmp_path: Path) -> None:
    """Guessing a lower count would break the budget, and a lower sequence would repeat one."""
    store = make_store(tmp_path)
    store.keep(make_frame(), bundle=BUNDLE)
    (tmp_path / "capture" / "ledger.json").write_bytes(b"{}x")
    with pytest.raises(StorageError, match=r"ledger\.json"):
        store.keep(make_frame(1), bundle=BUNDLE)


def spoil(folder: Path, item: int, fault: str) -> Path:
    """Put something that is no captured frame where one is expected."""
    path = folder / "capture" / f"{item:012d}.sealed"
    good = path.read_bytes()
    path.unlink()
    if fault == "folder":
        (path / "below").mkdir(parents=True)
    elif fault == "pipe":
        os.mkfifo(path)
    elif fault == "link":
        path.symlink_to("/etc/hostname")
    elif fault == "another number":
        path.write_bytes((folder / "capture" / "000000000000.sealed").read_bytes())
    elif fault != "missing":
        path.write_bytes(
            {"empty": b"", "garbage": b"x" * 500, "cut": good[:20], "too long": good + bytes(10**6)}[fault]
        )
    return path


NO_FILE = ("folder", "pipe", "link", "missing")


@pytest.mark.parametrize("fault", [*NO_FILE, "empty", "garbage", "cut", "too long", "another number"])
def test_one_bad_item_does_not_keep_the_others_from_their_upload(tmp_path: Path, fault: str) -> None:
    store = make_store(tmp_path)
    for i in range(3):
        store.keep(make_frame(i), bundle=BUNDLE)
    path = spoil(tmp_path, 1, fault)
    assert store.pending() == ([0, 2] if fault in NO_FILE else [0, 1, 2])
    for read in (store.payload, lambda item: store.upload(item, PEN)):
        with pytest.raises((StorageError, TrustError), match=path.name):
            read(1)
    store.set_aside(1)
    store.set_aside(1)
    assert store.pending() == [0, 2] and not os.path.lexists(path)
    assert os.path.lexists(f"{path}.bad") == (fault != "missing")
    for item in store.pending():
        assert open_capture(store.upload(item, PEN), BOX, PEN_PUBLIC).sequence == item


def test_an_unreadable_item_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    store.keep(make_frame(), bundle=BUNDLE)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("kasmina_edge.telemetry.capture.os.open", refuse)
        with pytest.raises(StorageError, match="Input/output error"):
            store.payload(0)


@pytest.mark.parametrize("kinds", [("folder", "folder"), ("folder", "file"), ("file", "folder"), ("file", "file")])
def test_what_was_set_aside_before_is_replaced(tmp_path: Path, kinds: tuple[str, str]) -> None:
    folder = tmp_path / "capture"
    folder.mkdir()
    for name, kind in zip(("000000000001.sealed", "000000000001.sealed.bad"), kinds, strict=True):
        if kind == "folder":
            (folder / name / "below").mkdir(parents=True)
        else:
            (folder / name).write_bytes(b"x")
    make_store(tmp_path).set_aside(1)
    assert [p.name for p in folder.iterdir()] == ["000000000001.sealed.bad"]
    assert (folder / "000000000001.sealed.bad").is_dir() == (kinds[0] == "folder")


@pytest.mark.parametrize("lose", LOSSES)
def test_what_was_set_aside_stays_aside_after_a_power_cut(tmp_path: Path, lose: Lose) -> None:
    store = make_store(tmp_path)
    store.keep(make_frame(), bundle=BUNDLE)
    (tmp_path / "attic").mkdir()
    with pytest.raises(PowerCut), use_disk(PowerDisk(tmp_path / "attic", cut_after=2, lose=lose, seed=1)):
        store.set_aside(0)
    assert store.pending() == []


def test_a_sequence_that_was_set_aside_is_not_given_again(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for i in range(2):
        store.keep(make_frame(i), bundle=BUNDLE)
    store.set_aside(1)
    (tmp_path / "capture" / "ledger.json").unlink()
    store.keep(make_frame(2), bundle=BUNDLE)
    assert store.pending() == [0, 2]


def test_a_name_in_other_digits_is_no_item(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.keep(make_frame(), bundle=BUNDLE)
    for name in ("\N{ARABIC-INDIC DIGIT SEVEN}" * 12 + ".sealed", "000000000007.sealed\n"):
        (tmp_path / "capture" / name).write_bytes(b"x")
    assert store.pending() == [0]


def test_several_processes_share_one_budget(tmp_path: Path) -> None:
    program = """
import sys; from pathlib import Path; from worlds.telemetry import make_frame, make_plan
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.contracts.change_plan import CaptureBudget
plan = make_plan(sys.argv[2], capture=CaptureBudget(max_frames=20, max_bytes=10**6))
store = CaptureStore(Path(sys.argv[1]), plan, "cam-1")
print(sum(store.keep(make_frame(i), bundle="b") is not None for i in range(12)))
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    arguments = [sys.executable, "-c", program, str(tmp_path / "capture"), public_hex(BOX)]
    running = [subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    kept = [int(p.communicate(timeout=30)[0]) for p in running]
    store = CaptureStore(tmp_path / "capture", PLAN, "cam-1")
    assert sum(kept) == 20 and store.pending() == list(range(20))
    assert [read_header(store.payload(i)).sequence for i in store.pending()] == list(range(20))


def _payload() -> bytes:
    header = CaptureHeader(device="cam-1", bundle="b", sequence=0, at_s=0.0)
    text = header.to_bytes()
    sealed = seal(pack_arrays({"frame": np.arange(4.0)}), public_hex(BOX), info=header.info())
    return sign_capture(b"KCF1" + len(text).to_bytes(2, "big") + text + sealed, PEN)


PAYLOAD = _payload()
