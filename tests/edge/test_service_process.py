"""The agent as a service manager sees it: real processes, a real broker, and a notify socket that a test listens on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds.brokers import Inbox, wait_for

from kasmina_edge.cli import main
from kasmina_edge.contracts.record import DeviceState, TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.fleet.folder import FleetFolder
from kasmina_edge.service.health_socket import SOCKET_NAME, ask
from kasmina_edge.service.starts import machine_boot
from kasmina_edge.telemetry.outbox import open_outbox
from kasmina_edge.transport.broker import BrokerProcess, start_mosquitto
from kasmina_edge.transport.mqtt import MqttTransport

TOPICS = Topics("kasmina", "main")
TESTS = Path(__file__).resolve().parents[1]

HANGS = """
import os, sys, threading, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from kasmina_edge.agent import Agent
from kasmina_edge.logs import configure
from kasmina_edge.service.notify import Notifier
from kasmina_edge.service.signals import stop_on_signals
from kasmina_edge.settings import Settings
from kasmina_edge.telemetry.outbox import Outbox, open_outbox
from kasmina_edge.transport.memory import MemoryBroker, MemoryTransport
from kasmina_edge.transport.transport import Will

data = Path(sys.argv[1])

class Hanging(Outbox):
    def newer(self, *args, **kwargs):
        while (data / "hang").exists():
            time.sleep(0.05)  # a system call that does not come back
        return super().newer(*args, **kwargs)

def connect(topic, payload):
    transport = MemoryTransport(MemoryBroker(), "cam-1", will=Will(topic, payload))
    transport.connect(5.0)
    return transport

configure("")
Agent(data, Settings.read(data), connect, notifier=Notifier.from_environ(os.environ),
      outbox=lambda: Hanging(data / "outbox.db")).run(stop_on_signals(1.0))
"""


class Overseer:
    """What systemd does: it starts a process, hears its datagrams, and ends it."""

    def __init__(self, folder: Path, command: list[str], *, watchdog_s: float | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.socket.settimeout(15.0)
        environ = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        if watchdog_s is not None:
            environ["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        self.log = folder / "agent.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)

    def hear(self, text: str) -> str:
        """The next datagram that holds ``text``."""
        while True:
            try:
                said = self.socket.recv(4096).decode()
            except TimeoutError:
                raise AssertionError(f"no {text}: {self.log.read_text()[-2000:]}") from None
            if text in said:
                return said

    def pets_for(self, seconds: float) -> int:
        """How many pets come in so many seconds from now."""
        self.socket.settimeout(0.05)
        try:
            while True:
                self.socket.recv(4096)
        except TimeoutError:
            pass
        found, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                found += "WATCHDOG=1" in self.socket.recv(4096).decode()
            except TimeoutError:
                continue
        self.socket.settimeout(15.0)
        return found

    def end(self) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15), time.monotonic() - began

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)
        self.socket.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with start_mosquitto(0, tmp_path / "broker") as broker:
        yield broker


def enrolled(tmp_path: Path, address: str) -> Path:
    office = FleetFolder.init(tmp_path / "fleet", offline_keys=tmp_path / "offline", address=address, clock=time.time)
    office.enroll("cam-1", tmp_path / "cam-1")
    return tmp_path / "cam-1"


def run_command(data: Path) -> list[str]:
    return [sys.executable, "-m", "kasmina_edge", "run", "--data", str(data), "--wait-for-broker", "--json"]


def hanging(data: Path) -> list[str]:
    return [sys.executable, "-c", HANGS, str(data), str(TESTS), str(TESTS.parent)]


def test_a_life_as_a_service(tmp_path: Path, broker: BrokerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    data = enrolled(tmp_path, broker.address)
    inbox = Inbox()
    manager = Overseer(tmp_path, run_command(data), watchdog_s=2.0)
    try:
        assert "STATUS=cam-1: running" in manager.hear("READY=1")
        manager.hear("WATCHDOG=1")
        assert "no bundle" in manager.hear("STATUS=no bundle")
        health = wait_for(lambda: (h := ask(data / SOCKET_NAME)) and h["outbox"] and h, "the agent's answer")
        assert health["status"] == "ok" and health["device"] == "cam-1" and health["pid"] == manager.process.pid
        assert health["broker"] == {"address": broker.address, "connected": True}
        assert health["process"]["rss_bytes"] > 10_000_000 and health["process"]["open_files"] < 64
        assert (data / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
        capsys.readouterr()
        assert main(["status", "--data", str(data), "--health"]) == 0
        assert "ok, process" in capsys.readouterr().out
        assert main(["top", "--data", str(data), "--json", "--count", "1"]) == 0
        assert json.loads(capsys.readouterr().out)["status"] == "ok"
        limits = Path(f"/proc/{manager.process.pid}/limits").read_text()
        assert re.search(r"Max open files\s+512 ", limits)

        with MqttTransport(broker.address, "watcher") as watcher:
            watcher.connect(5.0)
            watcher.subscribe(TOPICS.state("cam-1"), inbox)
            wait_for(lambda: any(DeviceState.from_bytes(p, where="s").online for p in inbox.payloads), "birth")
            record = TelemetryRecord(
                device="cam-1", bundle="0" * 64, release=1, sequence=1, started_s=1, duration_s=1, frames=1, sampled=1
            )
            outbox = open_outbox(data)
            outbox.append("stats", record.to_bytes())
            code, seconds = manager.end()
            assert (code, seconds < 8.0) == (0, True)
            manager.hear("STOPPING=1")
            inbox.wait_until(lambda found: not DeviceState.from_bytes(found[-1].payload, where="s").online, "death")
            assert outbox.size().entries == 0
            outbox.close()
        assert ask(data / SOCKET_NAME) is None
        capsys.readouterr()
        assert main(["status", "--data", str(data), "--health"]) == 5
        assert main(["top", "--data", str(data)]) == 5
        assert "no agent answers" in capsys.readouterr().err
        lines = [json.loads(line) for line in manager.log.read_text().splitlines()]
        assert lines and all({"at", "level", "message"} <= set(line) for line in lines)
    finally:
        manager.close()


def test_a_loop_that_hangs_stops_petting_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = enrolled(tmp_path, "mqtt://127.0.0.1:1")
    manager = Overseer(tmp_path, hanging(data), watchdog_s=0.4)
    try:
        manager.hear("READY=1")
        assert manager.pets_for(0.8) >= 3
        (data / "hang").touch()
        wait_for(lambda: (h := ask(data / SOCKET_NAME)) and h["status"] == "stuck", "the agent to be stuck")
        assert manager.pets_for(0.8) == 0
        health = ask(data / SOCKET_NAME)
        assert health is not None and "silent" in health["problems"][0] and "'telemetry'" in health["problems"][0]
        capsys.readouterr()
        assert main(["status", "--data", str(data), "--health"]) == 1
        assert "the agent is stuck" in capsys.readouterr().err
        (data / "hang").unlink()
        wait_for(lambda: (h := ask(data / SOCKET_NAME)) and h["status"] == "ok", "the agent to go on")
        assert manager.pets_for(0.8) >= 3
        (data / "hang").touch()
        wait_for(lambda: (h := ask(data / SOCKET_NAME)) and h["status"] == "stuck", "the agent to be stuck again")
        code, seconds = manager.end()
        assert code == 1 and seconds < 6.0
        log = manager.log.read_text()
        assert "not stopped within 1 s" in log and "newer" in log
    finally:
        manager.close()


def test_starts_that_end_early_are_braked_and_a_stop_on_purpose_is_none(tmp_path: Path) -> None:
    data = enrolled(tmp_path, "mqtt://127.0.0.1:1")
    count = data / "starts"

    def early_ends() -> int:
        return int(json.loads(count.read_bytes())["early_ends"])

    manager = Overseer(tmp_path, hanging(data))
    manager.hear("READY=1")
    manager.process.kill()
    manager.process.wait(5)
    manager.socket.close()
    (tmp_path / "notify").unlink()
    assert early_ends() == 1
    count.write_text(json.dumps({"format": 1, "early_ends": 9, "machine_boot": machine_boot()}))
    manager = Overseer(tmp_path, hanging(data), watchdog_s=1.0)
    try:
        assert "the last 9 starts ended early: waiting 64 s" in manager.hear("READY=1")
        health = ask(data / SOCKET_NAME)
        assert health is not None and health["status"] == "braked"
        assert manager.pets_for(1.2) >= 2
        assert early_ends() == 10
        code, seconds = manager.end()
        assert code == 0 and seconds < 3.0
        assert early_ends() == 0
    finally:
        manager.close()
