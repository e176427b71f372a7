"""The device loop with a real controller, real signatures and real models, over the in-memory broker."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from pathlib import Path

import pytest
from worlds.bundles import make_bundle, make_frames
from worlds.fleets import MemoryFleet, grafted, plan_limits, wait_for

from kasmina_edge.agent import decide_offer
from kasmina_edge.contracts.change_plan import HealthLimits
from kasmina_edge.contracts.record import Summary, TelemetryRecord
from kasmina_edge.errors import InputError, LockedError, PlanError
from kasmina_edge.health import judge_trial
from kasmina_edge.runtime import Runtime
from kasmina_edge.safety.audit import AuditLog, verify
from kasmina_edge.service.health_socket import SOCKET_NAME, ask
from kasmina_edge.slots import SlotStore
from kasmina_edge.storage import Disk
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.outbox import open_outbox
from kasmina_edge.updates.trust import TrustStore

LIMITS = HealthLimits(probes="0" * 64, minimum_accuracy=0.9, live_frames=40, live_timeout_s=5.0, maximum_score_drop=0.2)


def scores(count: int, mean: float) -> Summary:
    return Summary(count=count, mean=mean, variance=0.01, minimum=0.1, maximum=1.0)


def test_an_offer_is_news_only_when_it_differs_from_what_runs() -> None:
    one, two = make_bundle().manifest, make_bundle(release=2).manifest
    assert decide_offer(None, one).action == "nothing"
    assert decide_offer(one, one).action == "nothing"
    assert decide_offer(two, one).action == "install"
    assert decide_offer(two, None).action == "install"
    refused = decide_offer(two, one, refused="quarantined")
    assert (refused.action, refused.reason) == ("refuse", "quarantined")
    assert decide_offer(one, one, refused="quarantined").action == "nothing"


def test_a_trial_waits_for_live_frames_and_judges_them() -> None:
    assert judge_trial(None, None, None, 0.0) == "commit"
    assert judge_trial(scores(50, 0.9), None, LIMITS, 1.0) == "wait"
    assert judge_trial(scores(50, 0.9), scores(39, 0.9), LIMITS, 1.0) == "wait"
    assert judge_trial(scores(50, 0.9), scores(40, 0.9), LIMITS, 1.0) == "commit"
    assert judge_trial(None, scores(40, 0.1), LIMITS, 1.0) == "commit"
    reason = judge_trial(scores(50, 0.9), scores(40, 0.5), LIMITS, 1.0)
    assert "0.500" in reason and "0.900" in reason


def test_few_bad_frames_at_the_timeout_are_not_waved_through() -> None:
    assert "0.150" in judge_trial(scores(5000, 0.97), scores(39, 0.15), LIMITS, 5.0)
    assert judge_trial(scores(5000, 0.97), scores(39, 0.96), LIMITS, 5.0) == "commit"


def test_an_app_that_goes_silent_on_trial_takes_the_trial_back_and_one_that_was_silent_before_does_not() -> None:
    assert judge_trial(scores(50, 0.9), None, LIMITS, 4.9, active_was_live=True) == "wait"
    assert "no live frame in 5 s" in judge_trial(scores(50, 0.9), None, LIMITS, 5.0, active_was_live=True)
    assert judge_trial(scores(50, 0.9), None, LIMITS, 5.0) == "commit"


def test_the_loop_from_host_to_graft_to_removal(tmp_path: Path) -> None:
    host = make_bundle()
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(host)
        report = fleet.wait_reported("cam-1", "committed", version="1.0.0")
        assert report.release == 1 and report.grafts == ()
        assert report.update_bytes and report.update_bytes["model full"] > 0
        fleet.office.publish(grafted(host, "1.1.0"), to=["cam-1"])
        report = fleet.wait_reported("cam-1", "committed", version="1.1.0")
        assert report.grafts == ("depthwise@s1",)
        assert report.previous == "digits 1.0.0"
        assert report.update_bytes and report.update_bytes["probes"] == 0
        view = fleet.view("cam-1")
        assert view is not None and view.online
        removed = fleet.office.withdraw("digits", to=["cam-1"])
        wait_for(lambda: (v := fleet.view("cam-1")) and v.reported and v.reported.release == removed.release, "removal")
        with Runtime.open(tmp_path / "cam-1", telemetry=None) as runtime:
            assert runtime.manifest.content_digest() == host.manifest.content_digest()
            assert runtime.manifest.release == 3
    assert verify(tmp_path / "cam-1" / "audit.log").ok


def test_a_harmful_graft_is_taken_back_and_stays_away(tmp_path: Path) -> None:
    host = make_bundle()
    harmful = grafted(host, "1.2.0", corrupt=True, accepted=False)
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(host)
        fleet.wait_reported("cam-1", "committed", version="1.0.0")
        with pytest.raises(InputError, match="was not accepted"):
            fleet.office.publish(harmful, to=["cam-1"])
        fleet.office.publish(harmful, to=["cam-1"], accept_anyway=True)
        report = fleet.wait_reported("cam-1", "rolled_back")
        assert report.version == "1.0.0"
        assert "reference probes" in report.reason and "plan asks 90 %" in report.reason
        fleet.office.publish(harmful, to=["cam-1"], accept_anyway=True)
        report = fleet.wait_reported("cam-1", "refused", text="quarantined")
        assert report.version == "1.0.0"
        log = (fleet.office.folder / "audit.log").read_text()
        assert log.count("accept_anyway") == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sites": ("s2",)}, "site s1 is not in the change plan"),
        ({"blueprints": {"se": (1,)}}, "blueprint depthwise v1 is not in the change plan"),
        ({"maximum_parameters": 1}, "the change plan allows 1"),
    ],
)
def test_what_the_plan_does_not_allow_is_refused_before_the_model_travels(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    host = make_bundle()
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(host, limits=plan_limits(**change))
        before = fleet.wait_reported("cam-1", "committed", version="1.0.0").update_bytes
        with pytest.raises(PlanError, match="devices would refuse it"):
            fleet.office.publish(grafted(host, "1.1.0"), to=["cam-1"])
        fleet.office.publish(grafted(host, "1.1.0"), to=["cam-1"], accept_anyway=True)
        report = fleet.wait_reported("cam-1", "refused", text=reason)
        assert report.version == "1.0.0"
        assert report.update_bytes == before


def test_an_agent_that_starts_later_catches_up_and_an_old_boot_is_told_from_a_new_one(tmp_path: Path) -> None:
    host = make_bundle()
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.publish_host(host)
        fleet.start("cam-1")
        first = fleet.wait_reported("cam-1", "committed", version="1.0.0")
        fleet.stop("cam-1")
        wait_for(lambda: (v := fleet.view("cam-1")) and not v.online, "offline")
        fleet.start("cam-1")
        again = wait_for(
            lambda: (v := fleet.view("cam-1")) and v.online and v.reported and v.reported.boot > first.boot and v,
            "boot",
        )
        assert again.reported is not None and again.reported.version == "1.0.0"


def test_a_second_agent_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(make_bundle())
        fleet.wait_reported("cam-1", "committed")
        with pytest.raises(LockedError, match="another agent holds this data folder"):
            fleet.agent("cam-1")
        fleet.office.publish(grafted(make_bundle(), "1.1.0"), to=["cam-1"])
        fleet.wait_reported("cam-1", "committed", version="1.1.0")


def test_groups_are_served_and_strangers_are_not(tmp_path: Path) -> None:
    host = make_bundle()
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1", groups=("all", "line-2"))
        fleet.enroll("cam-2")
        fleet.start("cam-1")
        fleet.start("cam-2")
        fleet.publish_host(host, to="@line-2")
        fleet.wait_reported("cam-1", "committed", version="1.0.0")
        view = fleet.view("cam-2")
        assert view is not None and view.reported is not None and view.reported.version is None
        with pytest.raises(InputError, match="no such device or group"):
            fleet.office.publish(host, to=["cam-9"], offline_keys=fleet.offline)


@pytest.mark.parametrize("rotten", ["model.tflite", "probes.npz", "manifest.json"])
def test_a_rotten_active_slot_does_not_refuse_its_own_repair(tmp_path: Path, rotten: str) -> None:
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(make_bundle())
        fleet.wait_reported("cam-1", "committed", version="1.0.0")
        store = SlotStore(fleet.data("cam-1"))
        active = store.record().active
        assert active is not None
        path = store.folder(active) / rotten
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        fleet.office.publish(make_bundle(version="2.0.0", seed=5), to=["cam-1"], offline_keys=fleet.offline)
        report = fleet.wait_reported("cam-1", "committed", version="2.0.0")
        assert report.release == 2
        assert store.quarantine_entries() == {}


def test_a_report_carries_the_audit_logs_head_and_the_floor_remembers_it(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        data = fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(make_bundle())
        report = fleet.wait_reported("cam-1", "committed", version="1.0.0")
        log = AuditLog(data / "audit.log")
        wait_for(lambda: (v := fleet.view("cam-1")) and v.reported and v.reported.audit_seq == log.head().seq, "head")  # type: ignore[union-attr]
        assert report.audit_hash and report.trace_id
        fleet.stop("cam-1")
        anchor = TrustStore(data / "trust", clock=time.time).audit_anchor()
        assert anchor == log.head()
        lines = (data / "audit.log").read_bytes().splitlines(keepends=True)
        (data / "audit.log").write_bytes(b"".join(lines[:-2]))
        (data / "audit.log.head").unlink(missing_ok=True)
        fleet.start("cam-1")
        alert = wait_for(lambda: alerts(data).get("audit_regress"), "the alert")
        assert alert["severity"] == "critical"


def test_a_file_that_was_changed_after_it_was_verified_is_told(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        data = fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(make_bundle())
        fleet.wait_reported("cam-1", "committed", version="1.0.0")
        assert alerts(data) == {}
        store = SlotStore(data)
        active = store.record().active
        assert active is not None
        (store.folder(active) / "manifest.json").write_bytes(b"{}")
        assert wait_for(lambda: alerts(data).get("tamper"), "the alert")["text"]
        health = ask(data / SOCKET_NAME)
        assert health is not None and health["status"] == "ok"
        assert health["engine"]["profile"] == "x86-cpu" and health["engine"]["names"][0] == "litert"


def alerts(data: Path) -> dict[str, dict[str, object]]:
    """What the agent says stands, by rule."""
    return {alert["rule"]: alert for alert in (ask(data / SOCKET_NAME) or {"alerts": []})["alerts"]}


class FullNow(Disk):
    """A disk on which no boot record can be written while ``full`` is set."""

    def __init__(self) -> None:
        self.full = threading.Event()
        self.refused = threading.Event()

    def open(self, path: Path, flags: int, mode: int) -> int:
        if self.full.is_set() and path.name.startswith(".boot-"):
            self.refused.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().open(path, flags, mode)


def test_a_disk_that_is_full_at_the_commit_delays_it_and_wedges_nothing(tmp_path: Path) -> None:
    disk = FullNow()
    host = make_bundle()
    with MemoryFleet(tmp_path, disk=disk) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(host, limits=plan_limits(live_frames=10, live_timeout_s=1.0))
        fleet.wait_reported("cam-1", "committed", version="1.0.0")
        fleet.office.publish(grafted(host, "1.1.0"), to=["cam-1"])
        fleet.wait_reported("cam-1", "trial")
        disk.full.set()
        assert disk.refused.wait(20)
        disk.full.clear()
        fleet.wait_reported("cam-1", "committed", version="1.1.0")
        fleet.office.publish(grafted(host, "1.2.0", seed=3), to=["cam-1"])
        fleet.wait_reported("cam-1", "committed", version="1.2.0")


def test_a_disk_that_is_full_at_the_start_does_not_keep_the_agent_away(tmp_path: Path) -> None:
    disk = FullNow()
    host = make_bundle()
    with MemoryFleet(tmp_path, disk=disk) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(host)
        fleet.wait_reported("cam-1", "committed", version="1.0.0")
        fleet.stop("cam-1")
        disk.full.set()
        fleet.start("cam-1")
        assert disk.refused.wait(20)
        wait_for(lambda: (v := fleet.view("cam-1")) and v.online, "the agent to be online")
        disk.full.clear()
        fleet.office.publish(grafted(host, "1.1.0"), to=["cam-1"])
        fleet.wait_reported("cam-1", "committed", version="1.1.0")


def test_numbers_at_the_edge_of_the_contract_do_not_end_the_loop(tmp_path: Path) -> None:
    host = make_bundle()
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(host, limits=plan_limits(live_frames=40, live_timeout_s=1.0))
        digest = fleet.wait_reported("cam-1", "committed", version="1.0.0").digest
        assert digest is not None
        outbox = open_outbox(fleet.data("cam-1"))
        extreme = Summary(count=2**53, mean=1e308, variance=1.0, minimum=0, maximum=1)
        for sequence in range(2):
            record = TelemetryRecord(
                device="cam-1", bundle=digest, release=1, sequence=sequence, started_s=0, duration_s=1, frames=1,
                sampled=1, score=extreme,
            )  # fmt: skip
            outbox.append("stats", record.to_bytes())
        outbox.close()
        fleet.office.publish(grafted(host, "1.1.0"), to=["cam-1"])
        report = fleet.wait_reported("cam-1", "rolled_back", text="no live frame")
        assert report.version == "1.0.0"
        assert fleet.is_alive("cam-1")


def test_a_device_restored_from_its_first_day_is_believed(tmp_path: Path) -> None:
    host = make_bundle()
    with MemoryFleet(tmp_path) as fleet:
        data = fleet.enroll("cam-1")
        shutil.copytree(data, tmp_path / "enrolled")
        fleet.publish_host(host)
        for _ in range(3):
            fleet.start("cam-1")
            wait_for(lambda: (v := fleet.view("cam-1")) and v.online, "online")
            fleet.wait_reported("cam-1", "committed" if _ == 0 else "idle", version="1.0.0")
            fleet.stop("cam-1")
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "enrolled", data)
        fleet.start("cam-1")
        restored = wait_for(
            lambda: (v := fleet.view("cam-1")) and v.online and v.reported and v.reported.boot == 1 and v, "belief"
        )
        assert restored.reported is not None


def test_a_capture_that_cannot_be_read_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    host = make_bundle()
    with MemoryFleet(tmp_path) as fleet:
        data = fleet.enroll("cam-1")
        fleet.start("cam-1")
        plan = fleet.publish_host(host)
        digest = fleet.wait_reported("cam-1", "committed", version="1.0.0").digest
        assert digest is not None
        store = CaptureStore(data / "capture", plan, "cam-1", clock=time.time)
        fleet.stop("cam-1")
        first, second = (store.keep(f.reshape(16, 16, 1), bundle=digest) for f in make_frames(2))
        assert first and second
        damaged = sorted((data / "capture").glob("*.sealed"))[0]
        damaged.write_bytes(b"rotten")
        fleet.start("cam-1")
        wait_for(lambda: fleet.office.store().captures("cam-1"), "the whole capture")
        assert len(fleet.office.store().captures("cam-1")) == 1
        wait_for(lambda: list((data / "capture").glob("*.bad")), "the other set aside")
