"""A device keeps its telemetry while the controller is away, over real brokers and a controller that is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from worlds.brokers import DEADLINE_S, wait_for

from kasmina_edge.contracts.topics import Topics
from kasmina_edge.telemetry.outbox import Outbox
from kasmina_edge.telemetry.publisher import RESUME_S, Publisher
from kasmina_edge.transport.broker import BrokerProcess, start_embedded, start_mosquitto
from kasmina_edge.transport.mqtt import MqttTransport

ROOT = Path(__file__).resolve().parents[2]
TOPICS = Topics(site="lab")
USERS = {"controller": "c-word", "cam-1": "one-word"}
CONTROLLER = """
import dataclasses, sys, time
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.fleet.presence import Presence, controller_will
from kasmina_edge.transport.mqtt import MqttTransport
topics = Topics(site="lab")
will = dataclasses.replace(controller_will(topics), delay_s=0.0)
transport = MqttTransport(sys.argv[1], "controller", username="controller", password="c-word", will=will)
presence = Presence(transport, topics, time.time)
transport.connect(10.0)
print("here", flush=True)
sys.stdin.readline()
presence.leave()
transport.close()
"""


def start_controller(broker: BrokerProcess) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, broker.address],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "here\n"
    return child


def with_rules() -> BrokerProcess:
    return start_mosquitto(users=USERS, topics=TOPICS)


@pytest.mark.parametrize("start", [start_embedded, with_rules], ids=["iotcore", "mosquitto"])
def test_a_killed_controller_stops_the_sending_and_its_return_starts_it(tmp_path: Path, start: object) -> None:
    now = [1000.0]
    with start() as broker:  # type: ignore[operator]
        device = MqttTransport(broker.address, "cam-1", username="cam-1", password="one-word")
        outbox = Outbox(tmp_path / "o.db")
        publisher = Publisher(outbox, device, TOPICS, "cam-1", lambda: now[0], rng=random.Random(0))
        device.connect(DEADLINE_S)

        def waits_for(what: str) -> bool:
            publisher.pump()
            return publisher.waits_for == what

        children = [start_controller(broker)]
        try:
            outbox.append("event", b"1")
            wait_for(lambda: waits_for("") and not outbox.size().entries, "the first event to be sent")
            os.kill(children[0].pid, signal.SIGKILL)
            wait_for(lambda: waits_for("controller"), "the will to be heard")
            outbox.append("event", b"2")
            assert publisher.pump() == 0 and outbox.size().entries == 1
            children.append(start_controller(broker))
            wait_for(lambda: waits_for("pause"), "the controller to be heard again")
            now[0] += RESUME_S
            assert publisher.pump() == 1 and outbox.size().entries == 0
            children[1].communicate("leave\n", timeout=DEADLINE_S)
            wait_for(lambda: waits_for("controller"), "the goodbye to be heard")
        finally:
            for child in children:
                child.kill()
                child.wait()
            device.close()
            outbox.close()
