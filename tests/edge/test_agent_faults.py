"""What rots, repeats or runs short on a device that nobody can reach stops neither its agent nor what it tells."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from worlds.bundles import make_bundle
from worlds.fleets import MemoryFleet, wait_for

from kasmina_edge.agent.heart import Heart
from kasmina_edge.agent.reporting import Report
from kasmina_edge.agent.updating import Updater
from kasmina_edge.contracts.record import Status
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import KasminaError, StorageError, TrustError
from kasmina_edge.service.health_socket import SOCKET_NAME, HealthSocket, ask
from kasmina_edge.service.notify import Notifier
from kasmina_edge.service.starts import StartCounter
from kasmina_edge.slots import SlotStore
from kasmina_edge.transport.memory import MemoryBroker, MemoryTransport


def test_a_rotten_previous_slot_does_not_make_a_device_mute(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        data = fleet.enroll("cam-1")
        fleet.publish_host(make_bundle())
        fleet.start("cam-1")
        fleet.wait_reported("cam-1", "committed", version="1.0.0")
        fleet.office.publish(make_bundle(version="2.0.0", seed=5), to=["cam-1"], offline_keys=fleet.offline)
        before = fleet.wait_reported("cam-1", "committed", version="2.0.0")
        fleet.stop("cam-1")
        slots = SlotStore(data)
        previous = slots.record().previous
        assert previous is not None and before.previous == "digits 1.0.0"
        (slots.folder(previous) / "manifest.json").write_bytes(b"{rotten")
        fleet.start("cam-1")
        after = wait_for(
            lambda: (v := fleet.view("cam-1")) and v.reported and v.reported.boot > before.boot and v.reported, "report"
        )
        assert after.previous is None and after.version == "2.0.0"
        wait_for(lambda: (ask(data / SOCKET_NAME) or {}).get("alerts"), "the alert")


class Refusing:
    """Trust, slots and reporter of a device whose every check ends with ``error``."""

    def __init__(self) -> None:
        self.error: KasminaError = StorageError("no room: 100 bytes needed, 17 free")
        self.report, self.trial = Report(), None
        self.noted: list[tuple[str, str]] = []
        self.updater = Updater("cam-1", (), Topics("k", "s"), *[cast("Any", self)] * 5, Heart(Notifier()))

    def record(self) -> Refusing:
        return self

    def session(self, fetcher: object) -> None:
        raise self.error

    def set_status(self, status: Status, reason: str) -> None:
        self.report.status, self.report.reason = "downloading", ""  # as between two failures

    def note(self, event: str, **fields: str) -> None:
        self.noted.append((event, fields["reason"]))

    def check(self, error: KasminaError) -> None:
        self.error = error
        self.updater.check(MemoryTransport(MemoryBroker(), "cam-1"), threading.Event())


@pytest.mark.parametrize(("event", "kind"), [("update_failed", StorageError), ("update_refused", TrustError)])
def test_a_failure_that_repeats_is_noted_once(event: str, kind: type[KasminaError]) -> None:
    """A check a minute, each failing, must not fill the audit log: 168 MiB in a year."""
    device = Refusing()
    for free in range(50):
        device.check(kind(f"no room: 100 bytes needed, {free} free"))
        device.check(kind("the disk refuses"))
    assert device.noted == [(event, "no room: 100 bytes needed, 0 free"), (event, "the disk refuses")]
    device.report.offered = "a" * 64
    device.check(kind("the disk refuses"))
    assert len(device.noted) == 3  # of another offer


def test_starts_that_are_nested_too_deep_count_as_none(tmp_path: Path) -> None:
    (tmp_path / "starts").write_bytes(b"[" * 100_000)
    assert StartCounter(tmp_path / "starts", "b").early_ends == 0


def test_the_health_socket_answers_beside_a_thousand_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip(f"at most {hard} open files here, 1200 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    taken: list[int] = []
    served = HealthSocket(tmp_path / "agent.sock", lambda: {"status": "ok"})
    try:
        while not taken or taken[-1] < 1024:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        served.start()
        assert [ask(tmp_path / "agent.sock") for _ in range(3)] == [{"status": "ok"}] * 3
    finally:
        served.close()
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
