"""The device loop with a real controller, real signatures and real models, over the in-memory broker."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds.bundles import make_bundle
from worlds.fleets import MemoryFleet, grafted, plan_limits, wait_for

from kasmina_edge.agent import decide_offer, judge_trial
from kasmina_edge.contracts.change_plan import HealthLimits
from kasmina_edge.contracts.record import Summary
from kasmina_edge.errors import InputError, LockedError
from kasmina_edge.runtime import Runtime
from kasmina_edge.safety.audit import verify

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
    assert judge_trial(scores(50, 0.9), None, LIMITS, 5.0) == "commit"
    assert judge_trial(None, scores(40, 0.1), LIMITS, 1.0) == "commit"
    reason = judge_trial(scores(50, 0.9), scores(40, 0.5), LIMITS, 1.0)
    assert "0.500" in reason and "0.900" in reason


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
        fleet.office.publish(grafted(host, "1.1.0"), to=["cam-1"])
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
