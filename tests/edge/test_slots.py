"""A/B slots on a real disk: install, trial, confirm, roll back, recover, and everything that may go wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds.bundles import make_bundle, make_graft
from worlds.disks import BrokenDisk, FullDisk, PowerDisk, TightDisk

from kasmina_edge.boot_record import EMPTY
from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.errors import BundleError, InputError, KasminaError, LockedError, PlanError, StorageError
from kasmina_edge.slots import Slot, SlotStore
from kasmina_edge.storage import use_disk

HOST = make_bundle()
GOOD = make_bundle(version="1.1.0", release=2, seed=1, grafts=(make_graft(),), parent=HOST)
BAD = make_bundle(version="1.2.0", release=3, seed=2, corrupt=True, grafts=(make_graft(),), parent=HOST)
REASON = "reference probes 61.0 %, plan asks 95 %"


def digest(bundle: Bundle) -> str:
    return bundle.manifest.content_digest()


@pytest.fixture
def store(tmp_path: Path) -> SlotStore:
    """A device that runs the host."""
    store = SlotStore(tmp_path / "data", clock=lambda: 1_795_000_000.0, lock_wait_s=0.0)
    store.recover()
    commit(store, HOST)
    return store


def commit(store: SlotStore, bundle: Bundle) -> Slot:
    slot = store.install(bundle, engine="litert")
    store.begin_trial(slot)
    store.confirm()
    return slot


def picture(store: SlotStore, slot: Slot) -> dict[str, tuple[int, bytes]]:
    """Every file of a slot with its inode and bytes."""
    folder = store.folder(slot)
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def leftovers(store: SlotStore) -> list[str]:
    slots = store.folder("a").parent
    return sorted(p.name for p in slots.iterdir() if p.name not in ("a", "b") and not p.name.endswith(".lock"))


def test_a_new_device_is_empty(tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "data")
    assert store.record() == EMPTY
    assert store.active_bundle() is None and store.manifest("a") is None
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        store.bundle("a")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_an_update_goes_to_the_idle_slot_and_counts_when_confirmed(store: SlotStore) -> None:
    before = picture(store, "a")
    slot = store.install(GOOD, engine="litert")
    assert slot == "b" and store.record().active == "a" and store.record().trial is None
    record = store.begin_trial(slot)
    assert (record.active, record.trial, record.tries_left, record.serving) == ("a", "b", 1, "a")
    assert store.go_live().serving == "b"
    assert picture(store, "a") == before
    record = store.confirm()
    assert (record.active, record.trial, record.previous, record.live) == ("b", None, "a", False)
    active = store.active_bundle()
    assert active is not None and active.manifest == GOOD.manifest
    assert SlotStore(store.folder("a").parents[1]).record() == record


def test_a_slot_holds_only_the_files_of_its_engine(store: SlotStore) -> None:
    assert set(picture(store, "a")) == {"manifest.json", "model.tflite", "selftest-litert.npz", "probes.npz"}


def test_a_failed_trial_is_taken_back_with_its_reason_and_quarantined(store: SlotStore) -> None:
    before = picture(store, "a")
    store.begin_trial(store.install(BAD, engine="litert"))
    record = store.roll_back(REASON)
    assert (record.active, record.trial) == ("a", None)
    assert record.last_failure is not None
    assert (record.last_failure.bundle, record.last_failure.reason) == ("digits 1.2.0", REASON)
    assert record.last_failure.content_digest == digest(BAD) and record.last_failure.at_s == 1_795_000_000.0
    assert picture(store, "a") == before
    assert store.quarantined(digest(BAD)) == REASON
    with pytest.raises(PlanError, match=r"digits 1\.2\.0: quarantined on this device: reference probes 61\.0 %"):
        store.install(BAD, engine="litert")
    with pytest.raises(PlanError, match="quarantined"):
        store.begin_trial("b")


def test_the_same_content_under_another_release_stays_quarantined(store: SlotStore) -> None:
    store.quarantine(digest(BAD), REASON)
    again = Bundle(BAD.manifest.model_copy(update={"release": 99}), BAD.files)
    with pytest.raises(PlanError):
        store.install(again, engine="litert")


def test_an_operator_releases_a_quarantine(store: SlotStore) -> None:
    store.quarantine(digest(BAD), REASON)
    store.quarantine("ab" * 32, "other")
    assert set(store.quarantine_entries()) == {digest(BAD), "ab" * 32}
    with pytest.raises(InputError, match="names 0 quarantined contents") as told:
        store.release_quarantine(digest(GOOD))
    assert digest(BAD)[:12] in told.value.next_step
    with pytest.raises(InputError, match="names 0"):
        store.release_quarantine(digest(BAD)[:11])
    assert store.release_quarantine(digest(BAD)[:12]) == digest(BAD)
    assert store.quarantined("ab" * 32) == "other"
    assert store.quarantined(digest(BAD)) is None
    assert store.install(BAD, engine="litert") == "b"


def test_the_last_failure_outlives_what_comes_after(store: SlotStore) -> None:
    store.begin_trial(store.install(BAD, engine="litert"))
    failure = store.roll_back(REASON).last_failure
    commit(store, GOOD)
    store.recover()
    assert store.record().last_failure == failure
    store.roll_back("operator")
    assert store.record().last_failure == failure


def test_an_operator_returns_to_the_previous_bundle_and_forth(store: SlotStore) -> None:
    commit(store, GOOD)
    record = store.roll_back("operator")
    assert (record.active, record.previous) == ("a", "b")
    assert store.quarantined(digest(GOOD)) is None
    assert store.roll_back("operator").active == "b"


def test_there_is_no_way_back_to_a_slot_that_was_overwritten(store: SlotStore) -> None:
    commit(store, GOOD)
    store.install(BAD, engine="litert")  # replaces the host, and is not on trial yet
    assert store.record().previous is None
    with pytest.raises(InputError, match="no previous bundle"):
        store.roll_back("operator")
    assert store.record().active == "b"


def test_both_copies_of_the_record_let_go_of_a_slot_before_it_is_replaced(store: SlotStore, tmp_path: Path) -> None:
    commit(store, GOOD)
    store.install(BAD, engine="litert")
    newest = max(("boot-0", "boot-1"), key=lambda n: (tmp_path / "data" / n).stat().st_mtime_ns)
    (tmp_path / "data" / newest).write_bytes(b"rotten")
    assert store.record().active == "b" and store.record().previous is None


def test_a_damaged_previous_slot_is_not_returned_to(store: SlotStore) -> None:
    commit(store, GOOD)
    (store.folder("a") / "model.tflite").write_bytes(b"rotten")
    with pytest.raises(BundleError, match=r"model\.tflite"):
        store.roll_back("operator")
    assert store.record().active == "b"


def test_nothing_is_confirmed_or_made_live_without_a_trial(store: SlotStore) -> None:
    for call in (store.confirm, store.go_live):
        with pytest.raises(InputError, match="no slot is on trial"):
            call()


def test_no_trial_of_an_empty_or_damaged_slot(store: SlotStore) -> None:
    with pytest.raises(BundleError, match="no bundle is installed"):
        store.begin_trial("b")
    store.install(GOOD, engine="litert")
    model = store.folder("b") / "model.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match="sha256"):
        store.begin_trial("b")
    assert store.record().trial is None


def test_no_installation_during_a_trial(store: SlotStore) -> None:
    store.begin_trial(store.install(GOOD, engine="litert"))
    before = picture(store, "b")
    with pytest.raises(InputError, match="slot b is on trial"):
        store.install(BAD, engine="litert")
    assert picture(store, "b") == before and leftovers(store) == []


def test_a_bundle_whose_files_are_not_its_manifests_is_not_installed(store: SlotStore) -> None:
    wrong = Bundle(GOOD.manifest, {**GOOD.files, "model.tflite": b"other"})
    with pytest.raises(BundleError, match=r"model\.tflite"):
        store.install(wrong, engine="litert")
    with pytest.raises(BundleError, match="no model for"):
        store.install(make_bundle(engines=("litert",)), engine="onnxruntime")
    assert leftovers(store) == [] and store.manifest("b") is None


def test_a_bundle_received_for_one_engine_is_enough(store: SlotStore) -> None:
    files = {p: d for p, d in GOOD.files.items() if "onnx" not in p}
    assert store.install(Bundle(GOOD.manifest, files), engine="litert") == "b"


def test_an_app_that_holds_the_idle_slot_is_waited_for_and_then_told(store: SlotStore) -> None:
    commit(store, GOOD)  # active b; the app is still on a
    before = picture(store, "a")
    with store.lock_slot("a"), pytest.raises(LockedError, match=r"a\.lock: another process holds this lock"):
        store.install(BAD, engine="litert")
    assert picture(store, "a") == before and leftovers(store) == []
    assert store.record().previous == "a"
    assert store.install(BAD, engine="litert") == "a"


def test_an_app_that_moves_on_in_time_is_only_waited_for(tmp_path: Path, store: SlotStore) -> None:
    commit(store, GOOD)
    patient = SlotStore(tmp_path / "data", lock_wait_s=30.0)
    held = store.lock_slot("a")
    moved_on = threading.Timer(0.05, held.close)
    moved_on.start()
    assert patient.install(BAD, engine="litert") == "a"
    moved_on.join()


def test_an_open_model_file_keeps_its_bytes_while_its_slot_is_replaced(store: SlotStore) -> None:
    commit(store, GOOD)
    with (store.folder("a") / "model.tflite").open("rb") as model:
        store.install(BAD, engine="litert")
        assert model.read() == HOST.files["model.tflite"]


def test_one_agent_at_a_time(store: SlotStore, tmp_path: Path) -> None:
    with store.lock_agent(), pytest.raises(LockedError, match="another agent holds this data folder"):
        SlotStore(tmp_path / "data").lock_agent()
    store.lock_agent().close()


def test_two_processes_may_count_starts_at_once(tmp_path: Path, store: SlotStore) -> None:
    code = (
        "import sys; from pathlib import Path; from kasmina_edge.slots import SlotStore\n"
        "for _ in range(20): SlotStore(Path(sys.argv[1]), lock_wait_s=60).recover()"
    )
    before = store.record()
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [p.wait(60) for p in processes] == [0, 0]
    after = store.record()
    assert (after.boot, after.sequence) == (before.boot + 40, before.sequence + 40)


def test_an_interrupted_trial_takes_a_try_and_is_judged_again_in_the_dark(store: SlotStore) -> None:
    store.begin_trial(store.install(GOOD, engine="litert"), tries=3)
    store.go_live()
    record = store.recover()
    assert (record.trial, record.tries_left, record.serving) == ("b", 2, "a")
    assert store.recover().tries_left == 1
    record = store.recover()
    assert record.trial is None and record.active == "a"
    assert record.last_failure is not None and record.last_failure.reason.startswith("the trial was interrupted")
    assert store.quarantined(digest(GOOD)) == record.last_failure.reason


def test_many_quick_restarts_never_leave_a_committed_bundle(store: SlotStore) -> None:
    commit(store, GOOD)
    boot = store.record().boot
    for _ in range(20):
        store.recover()
    record = store.record()
    assert (record.active, record.previous, record.boot) == ("b", "a", boot + 20)


def test_a_roll_back_that_was_cut_after_its_quarantine_is_finished_with_its_reason(store: SlotStore) -> None:
    store.begin_trial(store.install(BAD, engine="litert"), tries=5)
    store.quarantine(digest(BAD), REASON)
    record = store.recover()
    assert record.trial is None and record.last_failure is not None and record.last_failure.reason == REASON


def test_a_damaged_trial_slot_is_given_up(store: SlotStore) -> None:
    store.begin_trial(store.install(GOOD, engine="litert"), tries=5)
    (store.folder("b") / "manifest.json").write_bytes(b"rotten")
    record = store.recover()
    assert record.trial is None and record.active == "a"
    assert record.last_failure is not None
    assert record.last_failure.bundle == "slot b" and "not valid JSON" in record.last_failure.reason


def test_a_damaged_active_slot_is_left_for_a_whole_previous_one(store: SlotStore) -> None:
    commit(store, GOOD)
    (store.folder("b") / "model.tflite").unlink()
    record = store.recover()
    assert (record.active, record.previous) == ("a", None)
    assert record.last_failure is not None and "slots/b" in record.last_failure.reason
    assert store.quarantined(digest(GOOD)) is None


def test_a_damaged_active_slot_stays_when_there_is_no_better(store: SlotStore) -> None:
    (store.folder("a") / "model.tflite").unlink()
    assert store.recover().active == "a"


def test_recovery_removes_leftovers_but_not_those_of_a_running_installation(store: SlotStore, tmp_path: Path) -> None:
    from kasmina_edge.storage import hold_lock

    slots = store.folder("a").parent
    for name in (".incoming-7", ".old-b-7"):
        shutil.copytree(store.folder("a"), slots / name)
    with hold_lock(slots / "install.lock"):
        store.recover()
        assert leftovers(store) == [".incoming-7", ".old-b-7"]
    store.recover()
    assert leftovers(store) == [] and store.active_bundle() is not None


@pytest.mark.parametrize("copy", ["boot-0", "boot-1"])
@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_one_record_copy_may_be_torn_or_missing(
    store: SlotStore, tmp_path: Path, copy: str, damage: bytes | None
) -> None:
    path = tmp_path / "data" / copy
    path.unlink() if damage is None else path.write_bytes(damage)
    record = store.record()
    assert (record.active, record.trial) == ("a", None)
    assert store.recover().sequence == record.sequence + 1
    assert store.record().active == "a"


def test_both_records_invalid_is_told_and_nothing_is_guessed(store: SlotStore, tmp_path: Path) -> None:
    for name in ("boot-0", "boot-1"):
        (tmp_path / "data" / name).write_bytes(b"rotten")
    for call in (store.record, store.recover, lambda: store.install(GOOD, engine="litert")):
        with pytest.raises(StorageError, match=r"neither boot-0 nor boot-1 is a valid record, and .*slots/a") as told:
            call()
        assert "backup" in told.value.next_step
    for name in ("boot-0", "boot-1"):
        (tmp_path / "data" / name).unlink()
    with pytest.raises(StorageError, match="and slots/a is there"):
        store.record()
    shutil.rmtree(store.folder("a"))
    assert store.record() == EMPTY


def test_a_damaged_quarantine_stops_installations_and_not_the_device(store: SlotStore, tmp_path: Path) -> None:
    store.begin_trial(store.install(BAD, engine="litert"))
    (tmp_path / "data/quarantine.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"quarantine\.json: damaged"):
        store.roll_back(REASON)
    record = store.record()
    assert record.trial is None and record.last_failure is not None and record.last_failure.reason == REASON
    assert store.recover().active == "a"
    with pytest.raises(StorageError, match="damaged"):
        store.install(GOOD, engine="litert")


def test_a_damaged_quarantine_ends_an_interrupted_trial(store: SlotStore, tmp_path: Path) -> None:
    store.begin_trial(store.install(GOOD, engine="litert"), tries=9)
    (tmp_path / "data/quarantine.json").write_bytes(b"{")
    record = store.recover()
    assert record.trial is None and record.last_failure is not None and "damaged" in record.last_failure.reason


def test_too_little_space_is_told_with_both_numbers_before_anything_is_written(store: SlotStore) -> None:
    with (
        use_disk(TightDisk(5000)),
        pytest.raises(StorageError, match=r"slots: \d{5,} bytes are needed and 5000 are free"),
    ):
        store.install(GOOD, engine="litert")
    assert leftovers(store) == [] and store.manifest("b") is None


@pytest.mark.parametrize("free_bytes", [0, 1, 4000, 8000, 12_000])
def test_a_disk_that_fills_up_while_installing_costs_nothing(store: SlotStore, free_bytes: int) -> None:
    commit(store, GOOD)
    before, record = picture(store, "b"), store.record()
    with use_disk(FullDisk(free_bytes)), pytest.raises(StorageError, match="no space left") as told:
        store.install(BAD, engine="litert")
    assert "Free space" in told.value.next_step
    assert store.record() == record and picture(store, "b") == before
    assert leftovers(store) == []
    assert store.bundle("a").manifest == HOST.manifest


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_any_single_operation_leaves_a_bootable_device(tmp_path: Path, code: int) -> None:
    device = tmp_path / "device"
    commit(SlotStore(device), HOST)
    commit(SlotStore(device), GOOD)
    counting = BrokenDisk(0)
    shutil.copytree(device, tmp_path / "whole")
    with use_disk(counting):
        commit(SlotStore(tmp_path / "whole"), BAD)
    assert counting.count > 30
    for at in range(1, counting.count + 1):
        folder = tmp_path / "one"
        shutil.copytree(device, folder)
        store = SlotStore(folder)
        refused = None
        with use_disk(BrokenDisk(at, code)):
            try:
                commit(store, BAD)
            except KasminaError as exc:  # nothing but our errors gets out
                refused = exc
        record = store.record()
        assert record.active is not None
        expected = (GOOD, BAD) if refused is not None else (BAD,)
        assert store.bundle(record.active).manifest in [b.manifest for b in expected]
        assert store.recover().active is not None
        assert leftovers(store) == []
        shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 128 kB, where this machine lets us have one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_really_full_disk(small_disk: Path) -> None:
    store = SlotStore(small_disk / "data")
    light = make_bundle(probes=0, engines=("litert",))
    commit(store, light)
    before = picture(store, "a")
    (small_disk / "ballast").write_bytes(b"x" * 40_000)
    with pytest.raises(StorageError, match=r"\d+ bytes are needed and \d+ are free"):
        store.install(GOOD, engine="litert")
    assert store.record().active == "a" and picture(store, "a") == before and leftovers(store) == []
    (small_disk / "ballast").unlink()
    assert store.install(make_bundle(probes=0, seed=4, engines=("litert",)), engine="litert") == "b"


def test_every_file_and_folder_is_flushed_before_the_slot_gets_its_name(tmp_path: Path, store: SlotStore) -> None:
    (tmp_path / "attic").mkdir()
    disk = PowerDisk(tmp_path / "attic")
    with use_disk(disk):
        store.install(GOOD, engine="litert")
    names = disk.operations
    into_place = next(i for i, name in enumerate(names) if name.endswith(" b"))
    assert names[into_place - 1] == "fsync" and names[into_place + 1] == "fsync"
    assert disk.unflushed() == []


def test_a_bundle_that_was_packed_and_read_is_the_one_that_is_installed(store: SlotStore, tmp_path: Path) -> None:
    from kasmina_edge.bundle import read

    store.install(read(pack(GOOD), where="memory"), engine="onnxruntime")
    assert store.bundle("b").engines() == ("onnxruntime",)
