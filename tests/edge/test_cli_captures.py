"""Erasing captured inputs through the program: here, in the plan that devices carry out, and in the list of grafts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from test_cli_fleet import Desk
from worlds.bundles import make_bundle, make_frames, make_graft
from worlds.fleets import plan_limits
from worlds.telemetry import make_record

from kasmina_edge.contracts.change_plan import Erasure
from kasmina_edge.contracts.record import SeedTelemetry
from kasmina_edge.errors import InputError
from kasmina_edge.safety.encryption import load_signing_key
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.sketch import LogHistogram

PLAN = ["--blueprint", "depthwise", "--site", "s1", "--capture-frames", "10"]


class Line:
    """A fleet with one device, a plan that allows capture, and captures made at given seconds."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.data = desk, desk.folder / "cam-1"
        desk.call("fleet", "enroll", "cam-1", "--data", str(self.data), *desk.fleet)
        desk.call("fleet", "publish", str(desk.host_file), *desk.fleet, *desk.offline)
        desk.call("fleet", "plan", str(desk.host_file), *PLAN, *desk.fleet, *desk.offline)
        self.now = 0.0

    def capture(self, at_s: float) -> bytes:
        self.now = at_s
        plan = self.desk.office().repository.current_plan("digits")
        assert plan is not None
        store = CaptureStore(self.data / "capture", plan, "cam-1", lambda: self.now)
        assert store.keep(make_frames(1)[0], bundle="0" * 64)
        return store.upload(store.pending()[-1], load_signing_key(self.data / "device.key"))

    def erase(self, *arguments: str, code: int = 0) -> str:
        return self.desk.call("fleet", "erase", *arguments, "--yes", *self.desk.fleet, *self.desk.offline, code=code)


@pytest.fixture
def line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(Desk(tmp_path, capsys))


def test_an_erasure_goes_everywhere(line: Line) -> None:
    office = line.desk.office()
    store = office.store()
    early, late, waiting = line.capture(100.0), line.capture(200.0), line.capture(150.0)
    for item in (early, late):
        store.add_capture("cam-1", item)
    graft = make_graft(capture_batches=("cam-1/000000",))
    grown = make_bundle(version="1.1.0", seed=3, grafts=(graft,), parent=line.desk.host)
    office.publish(grown, to=["cam-1"], accept_anyway=True)

    told = json.loads(line.erase("cam-1", "--to", "1970-01-01T00:03:10Z", "--id", "dpo-7", "--json"))
    assert told["removed"] == 1 and told["plans"] == {"digits": 2} and told["grafts"] == ["digits 1.1.0 (release 2)"]
    assert [c.payload for c in store.captures()] == [late]
    plan = line.desk.office().repository.current_plan("digits")
    assert plan is not None and plan.erasures == (Erasure(id="dpo-7", to_s=190.0, device="cam-1"),)
    assert plan.capture is not None and plan.capture.max_frames == 10  # the rest of the plan stays
    with pytest.raises(InputError, match="an erasure covers it"):
        line.desk.office().store().add_capture("cam-1", waiting)  # what was on its way is not kept
    log = (line.desk.folder / "fleet/audit.log").read_text()
    assert '"captures_erased"' in log and "dpo-7" in log

    line.desk.call("fleet", "plan", str(line.desk.host_file), *PLAN, *line.desk.fleet, *line.desk.offline)
    following = line.desk.office().repository.current_plan("digits")
    assert following is not None and following.serial == 3 and following.erasures == plan.erasures


def test_a_demand_is_checked_before_anything_is_done(line: Line) -> None:
    assert "not an ISO 8601 moment" in line.erase("cam-1", "--to", "yesterday", code=2)
    assert "not before" in line.erase("cam-1", "--from", "2026-01-02", "--to", "2026-01-01", code=2)
    assert "no such device" in line.erase("cam-9", code=2)
    line.erase("cam-1", "--to", "1970-01-01T00:03:10Z", "--id", "dpo-7")
    line.erase("cam-1", "--to", "1970-01-01T00:03:10Z", "--id", "dpo-7")  # again: harmless
    assert "another scope" in line.erase("@all", "--id", "dpo-7", code=2)
    nowhere = ["--offline-keys", str(line.desk.folder / "nowhere")]
    said = line.desk.call("fleet", "erase", "cam-1", "--yes", *line.desk.fleet, *nowhere, code=2)
    assert "offline keys" in said


def test_sampling_stands_in_the_plan(line: Line) -> None:
    rule = ["--capture-random", "2", "--capture-unsure", "1", "--capture-drifted", "3", "--capture-days", "14"]
    value = json.loads(
        line.desk.call(
            "fleet", "plan", str(line.desk.host_file), *PLAN, *rule, "--json", *line.desk.fleet, *line.desk.offline
        )
    )
    assert value["capture"]["max_days"] == 14.0
    assert value["capture"]["sampling"] == {
        "window_s": 60.0, "frames": 2, "low_score": 0.6, "low_score_frames": 1, "drift_frames": 3
    }  # fmt: skip
    assert plan_limits().capture_sampling is None
    said = line.desk.call(
        "fleet", "plan", str(line.desk.host_file), *PLAN, "--capture-random", "100", *line.desk.fleet, code=2
    )
    assert "64" in said


def test_seed_telemetry_is_shown_by_site_and_latency_for_all(line: Line) -> None:
    said = line.desk.call("fleet", "seeds", *line.desk.fleet)
    assert "No device has sent seed telemetry" in said and "not measured" in said
    assert "not enrolled here" in line.desk.call("fleet", "seeds", "cam-9", *line.desk.fleet, code=2)
    sketch = LogHistogram()
    for _ in range(100):
        sketch.add(50.0)
    record = make_record(
        started_s=time.time(),
        seeds=(SeedTelemetry(site="", looks=9), SeedTelemetry(site="s1", looks=9, utilization=0.25)),
        latency_sketch=sketch.encode(),
    )
    line.desk.office().store().record_telemetry([record])
    said = line.desk.call("fleet", "seeds", *line.desk.fleet)
    assert "s1" in said and "0.25" in said and "latency of 100 inferences: p50 50 us" in said
    value = json.loads(line.desk.call("fleet", "seeds", "cam-1", "--json", *line.desk.fleet))
    assert value["latency_us"]["count"] == 100 and value["devices"]["cam-1"][1]["utilization"] == 0.25
