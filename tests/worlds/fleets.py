"""A whole fleet in one process: fleet folder, controller and agents over the in-memory broker; every part is real."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from worlds.bundles import make_bundle, make_graft

from kasmina_edge.agent import Agent
from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.change_plan import ChangePlan
from kasmina_edge.contracts.record import Reported
from kasmina_edge.fleet.controller import Controller
from kasmina_edge.fleet.folder import FleetFolder, Limits
from kasmina_edge.fleet.store import DeviceView
from kasmina_edge.settings import Settings
from kasmina_edge.storage import Disk, use_disk
from kasmina_edge.transport.memory import MemoryBroker, MemoryTransport
from kasmina_edge.transport.transport import Transport, Will

DEADLINE_S = 20.0
T = TypeVar("T")


class MemoryFleet:
    """Controller and any number of agents on threads; leaving the block stops them all."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time, disk: Disk | None = None) -> None:
        self.folder = folder
        self.disk = disk or Disk()
        self.clock = clock
        self.broker = MemoryBroker()
        self.offline = folder / "offline"
        self.office = FleetFolder.init(
            folder / "fleet", offline_keys=self.offline, address="mqtt://127.0.0.1:1", clock=clock
        )
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._agents: dict[str, tuple[threading.Event, threading.Thread]] = {}

    def __enter__(self) -> MemoryFleet:
        transport = MemoryTransport(self.broker, "controller")
        transport.connect(5.0)
        controller = Controller(
            self.office.folder / "repository", transport, self.office.topics, self.office.store(), clock=self.clock
        )
        self._thread = threading.Thread(target=controller.run, args=(self._stop,))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for device in list(self._agents):
            self.stop(device)
        self._stop.set()
        self._thread.join(10)

    def data(self, device: str) -> Path:
        """The device's data folder."""
        return self.folder / device

    def enroll(self, device: str, groups: tuple[str, ...] = ("all",)) -> Path:
        """Enrol without starting."""
        self.office.enroll(device, self.data(device), groups=groups)
        return self.data(device)

    def agent(self, device: str) -> Agent:
        """An agent over the device's folder, not running."""

        def connect(topic: str, payload: bytes) -> Transport:
            transport = MemoryTransport(self.broker, device, will=Will(topic, payload, delay_s=0.0))
            transport.connect(5.0)
            return transport

        settings = Settings.read(self.data(device), environ={}, system_file=self.folder / "none.toml")
        return Agent(self.data(device), settings, connect, clock=self.clock)

    def start(self, device: str) -> None:
        """Run the device's agent on a thread."""
        stop = threading.Event()
        agent = self.agent(device)

        def run() -> None:
            with use_disk(self.disk):
                agent.run(stop)

        thread = threading.Thread(target=run)
        thread.start()
        self._agents[device] = (stop, thread)

    def stop(self, device: str) -> None:
        """Stop the device's agent and wait for it."""
        stop, thread = self._agents.pop(device)
        stop.set()
        thread.join(10)
        assert not thread.is_alive()

    def is_alive(self, device: str) -> bool:
        """Whether the device's agent still runs."""
        return self._agents[device][1].is_alive()

    def view(self, device: str) -> DeviceView | None:
        """What the controller's store knows."""
        return next((v for v in self.office.store().devices() if v.device == device), None)

    def wait_reported(self, device: str, status: str, *, version: str | None = None, text: str = "") -> Reported:
        """The report with that status, as soon as the controller has it."""

        def found() -> Reported | None:
            view = self.view(device)
            report = view.reported if view else None
            fits = report is not None and report.status == status and version in (None, report.version)
            return report if fits and report is not None and text in report.reason else None

        report = wait_for(found, lambda: f"{device} to report {status} {version} {text}; {self.view(device)}")
        assert report is not None
        return report

    def publish_host(self, host: Bundle, *, to: str = "@all", limits: Limits | None = None) -> ChangePlan:
        """A host with a change plan for depthwise grafts at s1 and s2."""
        plan = self.office.draft_plan(host.manifest, limits or plan_limits())
        self.office.publish(host, to=[to], offline_keys=self.offline, plan=plan)
        return plan


def plan_limits(**changes: object) -> Limits:
    """Depthwise at s1 and s2, probes at 90 %, no wait for live frames."""
    fields: dict[str, object] = {
        "blueprints": {"depthwise": (1,)},
        "sites": ("s1", "s2"),
        "minimum_accuracy": 0.9,
        "live_frames": 0,
        "capture_frames": 50,
        "capture_bytes": 500_000,
    }
    return Limits(**{**fields, **changes})  # type: ignore[arg-type]


def grafted(host: Bundle, version: str, *, seed: int = 1, corrupt: bool = False, accepted: bool = True) -> Bundle:
    """A bundle that says it is ``host`` with a depthwise graft, with acceptance numbers."""
    from kasmina_edge.contracts.manifest import Acceptance

    made = make_bundle(
        version=version, seed=seed, corrupt=corrupt, grafts=(make_graft(site="s1"),), host=host, parent=host
    )
    acceptance = Acceptance(
        samples=100,
        clean_before=0.95,
        clean_after=0.95 if accepted else 0.5,
        target_before=0.3,
        target_after=0.9,
        gain_low=0.5,
        gain_high=0.7,
        clean_loss_high=0.01 if accepted else 0.5,
        accepted=accepted,
        reasons=() if accepted else ("clean accuracy lost",),
    )
    return Bundle(made.manifest.model_copy(update={"acceptance": acceptance}), made.files, {})


def wait_for(condition: Callable[[], T], what: Callable[[], str] | str, *, deadline_s: float = DEADLINE_S) -> T:
    """The first true answer of ``condition``; a failed test when there is none in time."""
    until = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"waited {deadline_s} s for {what() if callable(what) else what}")
        threading.Event().wait(0.02)
