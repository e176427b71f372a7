"""Brokers behind one face, real processes and the one in memory, and the means to wait without sleeping blindly.

with SUBJECTS["mosquitto"]() as subject:
    with subject.client("a") as a: ...
    subject.kill(); subject.start()
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

from kasmina_edge.transport.broker import BrokerProcess, start_embedded, start_mosquitto
from kasmina_edge.transport.memory import MemoryBroker, MemoryTransport
from kasmina_edge.transport.mqtt import MqttTransport
from kasmina_edge.transport.transport import Message, Transport

DEADLINE_S = 10.0
T = TypeVar("T")


class Inbox:
    """A handler that remembers, and waits for what it has not seen yet."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._news = threading.Condition()

    def __call__(self, message: Message) -> None:
        with self._news:
            self.messages.append(message)
            self._news.notify_all()

    def wait(self, count: int = 1, *, deadline_s: float = DEADLINE_S) -> list[Message]:
        """The messages, once there are ``count``."""
        return self.wait_until(lambda found: len(found) >= count, f"{count} messages", deadline_s=deadline_s)

    def wait_until(
        self, fits: Callable[[list[Message]], bool], what: str, *, deadline_s: float = DEADLINE_S
    ) -> list[Message]:
        """The messages, once ``fits`` says so."""
        with self._news:
            if not self._news.wait_for(lambda: fits(self.messages), deadline_s):
                raise AssertionError(f"waited {deadline_s} s for {what}, got {len(self.messages)}: {self.payloads[:5]}")
            return list(self.messages)

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


def wait_for(condition: Callable[[], T], what: str, *, deadline_s: float = DEADLINE_S) -> T:
    """The first true answer of ``condition``."""
    until = time.monotonic() + deadline_s
    while not (found := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"waited {deadline_s} s for {what}")
        threading.Event().wait(0.005)
    return found


class Subject(ABC):
    """A running broker and its clients; leaving the block closes all of them."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @abstractmethod
    def client(self, name: str, **options: Any) -> Transport:
        """A transport that is not connected yet."""

    @abstractmethod
    def kill(self) -> None:
        """The broker crashes; what it kept in memory is gone."""

    @abstractmethod
    def start(self) -> None:
        """It comes back at the same address."""

    def connected(self, name: str, **options: Any) -> Transport:
        """A connected transport."""
        transport = self.client(name, **options)
        transport.connect(DEADLINE_S)
        return transport


class MemorySubject(Subject):
    """The broker in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = MemoryBroker()

    def client(self, name: str, **options: Any) -> Transport:
        transport = MemoryTransport(self.broker, name, **options)
        self._stack.callback(transport.close)
        return transport

    def kill(self) -> None:
        self.broker.stop()

    def start(self) -> None:
        self.broker.start(wipe=True)


class ProcessSubject(Subject):
    """A broker as a child process on a free loopback port."""

    def __init__(self, start: Callable[[], BrokerProcess]) -> None:
        super().__init__()
        self.broker = self._stack.enter_context(start())

    def client(self, name: str, **options: Any) -> Transport:
        transport = MqttTransport(self.broker.address, name, **{"reconnect_s": (0.02, 0.2), **options})
        self._stack.callback(transport.close)
        return transport

    def kill(self) -> None:
        self.broker.kill()

    def start(self) -> None:
        self.broker.start()


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "memory": MemorySubject,
    "iotcore": lambda: ProcessSubject(start_embedded),
    "mosquitto": lambda: ProcessSubject(start_mosquitto),
}
