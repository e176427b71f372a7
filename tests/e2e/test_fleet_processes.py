"""The whole loop with real processes over mosquitto: the programs as a user starts them, models that really run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import make_bundle, make_frames
from worlds.fleets import grafted, plan_limits, wait_for

from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.cli import main
from kasmina_edge.contracts.record import Reported
from kasmina_edge.fleet.folder import FleetFolder
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.runtime import Runtime
from kasmina_edge.safety.audit import verify
from kasmina_edge.transport.broker import BrokerProcess, start_mosquitto

APP = """
import sys, time
import numpy as np
from kasmina_edge import Runtime
frames = np.load(sys.argv[2])
with Runtime.open(sys.argv[1]) as runtime:
    print("filming", flush=True)
    while True:
        for i, frame in enumerate(frames):
            runtime.check(frame, i % 10) if i % 4 == 0 else runtime.infer(frame)
            time.sleep(0.01)
"""


class World:
    """A fleet over a real broker; every process is ended by id."""

    def __init__(self, folder: Path, broker: BrokerProcess) -> None:
        self.folder = folder
        self.broker = broker
        self.offline = folder / "offline"
        self.fleet = folder / "fleet"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        assert (
            main(
                [
                    "fleet",
                    "init",
                    "--fleet",
                    str(self.fleet),
                    "--offline-keys",
                    str(self.offline),
                    "--address",
                    broker.address,
                    "--json",
                ]
            )
            == 0
        )

    def office(self) -> FleetFolder:
        import time

        return FleetFolder(self.fleet, clock=time.time)

    def start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)

    def start_controller(self) -> None:
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        self.start(
            "controller", "-m", "kasmina_edge", "controller", "--fleet", str(self.fleet), "--ready-file", str(ready)
        )
        wait_for(ready.exists, lambda: f"the controller: {self.log('controller')}")

    def start_device(self, device: str) -> None:
        self.start(device, "-m", "kasmina_edge", "run", "--data", str(self.folder / device))

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(15)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-800:]

    def reported(
        self, device: str, status: str, version: str | None = None, text: str = "", boot: int | None = None
    ) -> Reported:
        def found() -> Reported | None:
            view = next((v for v in self.office().store().devices() if v.device == device), None)
            report = view.reported if view else None
            fits = report is not None and report.status == status and version in (None, report.version)
            fits = fits and report is not None and boot in (None, report.boot)
            return report if fits and report is not None and text in report.reason else None

        report = wait_for(found, lambda: f"{device} {status} {version}: {self.log(device)}", deadline_s=30.0)
        assert report is not None
        return report

    def write(self, bundle: Bundle) -> Path:
        """The bundle as a file under a desk key of this world."""
        import time

        signed = Repository.desk(self.folder / "desk", clock=time.time).sign_bundle(bundle)
        path = self.folder / f"{bundle.manifest.name}-{bundle.manifest.version}.kasmina"
        path.write_bytes(pack(signed))
        return path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with start_mosquitto(0, tmp_path / "broker") as broker:
        world = World(tmp_path, broker)
        try:
            yield world
        finally:
            for name in list(world.processes):
                world.end(name)


def test_the_loop_end_to_end_over_a_real_broker(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    host = make_bundle()
    fleet = ("--fleet", str(world.fleet))
    data = world.folder / "cam-1"
    assert main(["fleet", "enroll", "cam-1", "--data", str(data), *fleet]) == 0
    world.start_controller()
    world.start_device("cam-1")
    host_file = world.write(host)
    assert (
        main(
            [
                "fleet",
                "plan",
                str(host_file),
                "--blueprint",
                "depthwise@1",
                "--site",
                "s1",
                "--live-frames",
                "20",
                "--offline-keys",
                str(world.offline),
                *fleet,
            ]
        )
        == 0
    )
    assert main(["deploy", str(host_file), "--to", "@all", "--offline-keys", str(world.offline), *fleet]) == 0
    first = world.reported("cam-1", "committed", "1.0.0")
    assert first.update_bytes and first.update_bytes["model full"] > 0

    np.save(world.folder / "frames.npy", make_frames(64))
    world.start("app", "-c", APP, str(data), str(world.folder / "frames.npy"))
    wait_for(lambda: world.office().store().telemetry("cam-1", 0.0), lambda: f"telemetry: {world.log('app')}")

    assert main(["fleet", "publish", str(world.write(grafted(host, "1.1.0"))), "--to", "cam-1", *fleet]) == 0
    report = world.reported("cam-1", "committed", "1.1.0")
    assert "live frames compared" in report.reason
    assert report.update_bytes and report.update_bytes["probes"] == 0
    wait_for(
        lambda: any(r.bundle == report.digest and r.frames for r in world.office().store().telemetry("cam-1", 0.0)),
        "the app to serve the new bundle",
    )

    harmful = world.write(grafted(host, "1.2.0", corrupt=True, accepted=False))
    assert main(["fleet", "publish", str(harmful), "--to", "cam-1", *fleet]) == 2
    assert "was not accepted" in capsys.readouterr().err
    assert main(["fleet", "publish", str(harmful), "--to", "cam-1", "--accept-anyway", *fleet]) == 0
    report = world.reported("cam-1", "rolled_back", "1.1.0")
    assert "reference probes" in report.reason

    assert main(["fleet", "withdraw", "digits", "--to", "cam-1", *fleet]) == 0
    report = world.reported("cam-1", "committed", "1.0.0")
    assert report.grafts == ()
    assert world.processes["app"].poll() is None
    capsys.readouterr()
    assert main(["fleet", "status", "--json", *fleet]) == 0
    shown = json.loads(capsys.readouterr().out)["devices"]["cam-1"]
    assert shown["digest"] == report.digest and shown["online"]
    assert world.end("app") == -signal.SIGTERM
    assert world.end("cam-1") == 0
    with Runtime.open(data, telemetry=None) as device:
        assert device.manifest.content_digest() == host.manifest.content_digest()
    assert verify(data / "audit.log").ok


def test_a_broker_lost_in_the_middle_costs_nothing(world: World) -> None:
    host = make_bundle()
    world.office().enroll("cam-1", world.folder / "cam-1")
    world.start_controller()
    world.start_device("cam-1")
    office = world.office()
    office.publish(host, to=["@all"], offline_keys=world.offline, plan=office.draft_plan(host.manifest, plan_limits()))
    before = world.reported("cam-1", "committed", "1.0.0")
    world.broker.kill()
    office.publish(grafted(host, "1.1.0"), to=["cam-1"])
    with Runtime.open(world.folder / "cam-1", telemetry=None) as runtime:
        assert runtime.manifest.digest() == before.digest
        runtime.infer(make_frames(1)[0])
    world.broker.start()
    report = world.reported("cam-1", "committed", "1.1.0")
    assert report.boot == before.boot, "the agent went on, it was not started again"


def test_a_killed_agent_comes_back_to_a_whole_slot(world: World) -> None:
    host = make_bundle()
    world.office().enroll("cam-1", world.folder / "cam-1")
    world.start_controller()
    world.start_device("cam-1")
    office = world.office()
    limits = plan_limits(live_frames=1000, live_timeout_s=600.0)
    office.publish(host, to=["@all"], offline_keys=world.offline, plan=office.draft_plan(host.manifest, limits))
    before = world.reported("cam-1", "committed", "1.0.0")
    office.publish(grafted(host, "1.1.0"), to=["cam-1"])
    world.reported("cam-1", "trial")
    for boot, status in ((1, "trial"), (2, "refused")):
        assert world.end("cam-1", signal.SIGKILL) == -signal.SIGKILL
        with Runtime.open(world.folder / "cam-1", telemetry=None) as runtime:
            runtime.infer(make_frames(1)[0])
        world.start_device("cam-1")
        report = world.reported("cam-1", status, "1.0.0", boot=before.boot + boot)
    assert "no try is left" in report.reason
    assert report.digest == before.digest


def test_no_broker_is_one_sentence(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KASMINA_")}
    assert (
        main(["fleet", "init", "--fleet", str(tmp_path / "fleet"), "--offline-keys", str(tmp_path / "off"), "--json"])
        == 0
    )
    assert (
        main(["fleet", "enroll", "cam-1", "--data", str(tmp_path / "cam-1"), "--fleet", str(tmp_path / "fleet")]) == 0
    )
    done = subprocess.run(
        [sys.executable, "-m", "kasmina_edge", "run", "--data", str(tmp_path / "cam-1")],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.returncode == 5
    assert "cannot connect" in done.stderr and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("{")]  # JSON is the log
    assert 1 <= len(said) <= 3
