"""What counts as a breach: the errors that real attacks cause, clocks that are set, logs that contradict themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from worlds.bundles import make_bundle
from worlds.repositories import DAY_S, World

from kasmina_edge.errors import BundleError, InputError, KasminaError, LinkError, PlanError, StorageError, TrustError
from kasmina_edge.safety.audit import AuditLog, AuditReport, Head, head_path, verify
from kasmina_edge.safety.security import (
    SECURITY_KINDS,
    SECURITY_SEVERITY,
    Breach,
    ClockReading,
    audit_conflict,
    breach_of,
    breach_of_audit,
    breach_of_file,
    clock_jump,
)
from kasmina_edge.updates.floor import Floor
from kasmina_edge.updates.trust import MemoryFetcher, TrustStore


def refusal(action: Callable[[], object]) -> KasminaError:
    with pytest.raises(KasminaError) as caught:
        action()
    return caught.value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    made.publish(make_bundle(), to=("cam-1",))
    return made


def kind_of(error: KasminaError) -> str | None:
    breach = breach_of(error)
    return None if breach is None else breach.kind


def device(world: World, folder: Path, *, later_s: float = 0.0) -> TrustStore:
    trust = TrustStore(folder, clock=lambda: world.clock() + later_s)
    trust.pin(world.repository.root_bytes())
    return trust


def look(trust: TrustStore, files: dict[str, bytes]) -> None:
    trust.session(MemoryFetcher(files)).refresh()


def test_the_errors_of_real_attacks_have_their_kind(world: World, tmp_path: Path) -> None:
    files = dict(world.repository.metadata_files())
    look(device(world, tmp_path / "honest"), files)  # the negative control: nothing is wrong with these
    forged = {**files, "timestamp.json": files["timestamp.json"].replace(b'"sig": "', b'"sig": "00', 1)}
    if forged == files:
        forged = {**files, "timestamp.json": files["timestamp.json"].replace(b'"sig":"', b'"sig":"00', 1)}
    assert forged != files
    assert kind_of(refusal(lambda: look(device(world, tmp_path / "forged"), forged))) == "bad_signature"
    late = device(world, tmp_path / "late", later_s=400 * DAY_S)
    assert kind_of(refusal(lambda: look(late, files))) == "expired"
    broken = {**files, "timestamp.json": b"{"}
    assert kind_of(refusal(lambda: look(device(world, tmp_path / "broken"), broken))) == "malformed"
    snapshot = next(name for name in files if name.endswith("snapshot.json"))
    changed = {**files, snapshot: files[snapshot] + b" "}
    error = refusal(lambda: look(device(world, tmp_path / "changed"), changed))
    assert kind_of(error) in ("tamper", "bad_signature"), error


def test_what_went_back_is_a_replay() -> None:
    manifest = make_bundle().manifest
    floor = Floor(releases={manifest.name: manifest.release + 1}, versions={"timestamp": 7}, online_keys="k")
    assert kind_of(refusal(lambda: floor.check_release(manifest))) == "replay"
    assert kind_of(refusal(lambda: floor.check_versions({"timestamp": 6}, "k"))) == "replay"


@pytest.mark.parametrize(
    "error",
    [
        PlanError("outside the plan"),
        LinkError("gone"),
        StorageError("full"),
        InputError("x"),
        TrustError("no root is pinned"),
    ],
)
def test_what_is_no_attack_is_no_breach(error: KasminaError) -> None:
    assert breach_of(error) is None


def test_a_changed_file_is_tamper_and_a_bad_disk_is_not() -> None:
    assert breach_of_file(BundleError("slots/a/model.tflite: sha256 differs")) == Breach(
        "tamper", "slots/a/model.tflite: sha256 differs"
    )
    assert breach_of_file(StorageError("slots/a: I/O error")) is None


@pytest.mark.parametrize(
    ("wall_s", "running_s", "told"),
    [
        (60.0, 60.0, None),
        (64.9, 60.0, None),
        (66.0, 60.0, "forward by 6 s within 60 s"),
        (-3600.0, 60.0, "back by 3660 s"),
        (7 * 3600.0, 7 * 3600.0, None),  # the machine slept, and CLOCK_BOOTTIME went on
        (60.0, -5.0, None),  # another start: the running clock begins anew
    ],
)
def test_a_clock_that_was_set_is_told(wall_s: float, running_s: float, told: str | None) -> None:
    start = ClockReading(1_800_000_000.0, 1000.0)
    breach = clock_jump(start, ClockReading(start.wall_s + wall_s, start.running_s + running_s))
    assert (breach is None) if told is None else (breach is not None and told in breach.message)


def test_a_log_cut_together_with_its_head_shows_against_the_floor(tmp_path: Path) -> None:
    log, trust = AuditLog(tmp_path / "audit.log", clock=lambda: 1.0), TrustStore(tmp_path / "trust", clock=lambda: 1.0)
    kept: tuple[bytes, bytes] | None = None
    for release in range(5):
        trust.anchor_audit(log.append("committed", release=release).head)
        if release == 2:
            kept = (tmp_path / "audit.log").read_bytes(), head_path(tmp_path / "audit.log").read_bytes()
    anchor = trust.audit_anchor()
    assert anchor == log.head() and anchor is not None and anchor.seq == 5
    assert breach_of_audit(verify(tmp_path / "audit.log", remembered=anchor), anchor) is None
    assert kept is not None
    (tmp_path / "audit.log").write_bytes(kept[0])
    head_path(tmp_path / "audit.log").write_bytes(kept[1])
    assert verify(tmp_path / "audit.log").ok, "log and head alone look whole"
    breach = breach_of_audit(verify(tmp_path / "audit.log", remembered=anchor), anchor)
    assert breach is not None and breach.kind == "audit_regress"
    assert "ends at entry 3 and lacks entry 5" in breach.message and "the floor knows entry 5" in breach.message
    log.append("committed", release=9)
    log.append("committed", release=9)
    rewritten = breach_of_audit(verify(tmp_path / "audit.log", remembered=anchor), anchor)
    assert rewritten is not None, "a log that grew again past the floor is another log"


def test_the_anchor_never_falls_and_survives_a_new_root(tmp_path: Path, world: World) -> None:
    trust = TrustStore(tmp_path / "trust", clock=world.clock)
    trust.anchor_audit(Head(5, "a" * 64))
    trust.anchor_audit(Head(4, "b" * 64))
    assert trust.audit_anchor() == Head(5, "a" * 64)
    trust.pin(world.repository.root_bytes())
    trust.raise_floor("digits", 3)
    assert TrustStore(tmp_path / "trust", clock=world.clock).audit_anchor() == Head(5, "a" * 64)


def test_an_old_floor_is_read_and_a_new_one_without_a_log_has_its_bytes() -> None:
    old = b'{"format":1,"releases":{"digits":3},"time_s":5.0}'
    floor = Floor.from_bytes(old)
    assert floor.audit is None and floor.to_bytes() == old


def test_contradictions() -> None:
    known = {7: "a" * 64, 9: "c" * 64}
    assert audit_conflict(known, 7, "a" * 64) is None and audit_conflict(known, 8, "b" * 64, "a" * 64) is None
    assert "entry 7 was aaaaaaaaaaaa" in str(audit_conflict(known, 7, "b" * 64))
    assert "entry 10 follows dddddddddddd, entry 9 was cccccccccccc" in str(
        audit_conflict(known, 10, "e" * 64, "d" * 64)
    )


def test_an_empty_log_is_no_breach_and_every_kind_has_a_severity() -> None:
    assert breach_of_audit(AuditReport(0, True, None, "0 entries in order"), None) is None
    assert set(SECURITY_SEVERITY) == set(SECURITY_KINDS)
