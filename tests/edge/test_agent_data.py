"""What the agent does with data that it must not keep, or cannot seal because the key is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from worlds.bundles import digits, make_bundle
from worlds.fleets import MemoryFleet, plan_limits, wait_for

from kasmina_edge.agent.spool import MEMORY_FOLDERS
from kasmina_edge.contracts.change_plan import Erasure
from kasmina_edge.runtime import Runtime
from kasmina_edge.safety.audit import verify
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.transport.memory import MemoryTransport


def events(fleet: MemoryFleet, device: str) -> list[dict[str, object]]:
    """The audit events that the controller has from a device."""
    return [json.loads(e.payload) for e in fleet.office.store().events(device)]


def serves_newest(fleet: MemoryFleet) -> bool:
    """Whether a device that asks now gets the newest metadata."""
    seen: list[bytes] = []
    transport = MemoryTransport(fleet.broker, "reader")
    transport.connect(5.0)
    transport.subscribe(fleet.office.topics.metadata("timestamp.json"), lambda message: seen.append(message.payload))
    newest = fleet.office.repository.metadata_files()["timestamp.json"]
    wait_for(lambda: seen, "a timestamp")
    transport.close()
    return newest in seen


def test_an_erasure_reaches_the_device_and_its_proof_comes_back(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.publish_host(make_bundle(), limits=plan_limits())
        fleet.start("cam-1")
        fleet.wait_reported("cam-1", "committed", version="1.0.0")
        fleet.stop("cam-1")  # so that what it captures stays on the device
        with Runtime.open(fleet.data("cam-1")) as runtime:
            assert all(runtime.capture(frame) for frame in digits()[0][:3])
        done = fleet.office.erase(Erasure(id="dpo-7", device="cam-1", to_s=fleet.clock() + 1.0), fleet.offline)
        assert done.removed == () and [name for name, _ in done.plans] == ["digits"]
        wait_for(lambda: serves_newest(fleet), "the controller to serve the new plan")
        fleet.start("cam-1")

        def proof() -> dict[str, object] | None:
            return next((e for e in events(fleet, "cam-1") if e["event"] == "captures_erased"), None)

        found = wait_for(proof, "the proof")
        assert found is not None
        told = found["fields"]
        assert isinstance(told, dict) and told["erasure"] == "dpo-7" and told["frames"] == 3
        plan = fleet.office.repository.current_plan("digits")
        store = CaptureStore(fleet.data("cam-1") / "capture", plan, "cam-1")
        assert store.pending() == [] and store.erasures_due() == []
        assert fleet.office.store().captures() == []
        assert verify(fleet.data("cam-1") / "audit.log").ok


@pytest.mark.skipif(not any(f.is_dir() for f in MEMORY_FOLDERS), reason="no file system in memory here")
def test_an_agent_without_its_key_can_still_be_reached_and_says_so(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        data = fleet.enroll("cam-1")
        with (data / "kasmina.toml").open("a") as settings:
            settings.write("\n[safety]\nrequire_external_key = true\n")
        fleet.publish_host(make_bundle(), limits=plan_limits())
        fleet.start("cam-1")
        fleet.wait_reported("cam-1", "committed", version="1.0.0")

        def alert() -> bool:
            view = fleet.view("cam-1")
            return view is not None and any(a.severity == "critical" for a in view.alerts)

        wait_for(alert, lambda: f"a critical alert; {fleet.view('cam-1')}")
        assert not (data / "outbox.db").exists()  # nothing unsealed came to rest
        fleet.stop("cam-1")
    assert not [f for folder in MEMORY_FOLDERS if folder.is_dir() for f in folder.glob("kasmina-*/outbox.db")]
