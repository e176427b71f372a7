"""Notify protocol, health socket, restart brake, bounds: each alone, with the other side real."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.brokers import wait_for

from kasmina_edge.agent.heart import BeatingStop, Heart
from kasmina_edge.errors import StorageError
from kasmina_edge.service.bounds import Usage, read_usage
from kasmina_edge.service.health_socket import MAX_ANSWER_BYTES, HealthSocket, ask
from kasmina_edge.service.notify import PETS_A_WATCHDOG, Notifier
from kasmina_edge.service.starts import FREE_STARTS, LONGEST_DELAY_S, StartCounter, delay_s


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def listen(address: str) -> socket.socket:
    """The service manager's side."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind("\0" + address[1:] if address.startswith("@") else address)
    sock.setblocking(False)
    return sock


def heard(sock: socket.socket) -> list[str]:
    """Every datagram that waits."""
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_manager_hears_ready_status_and_stopping(kind: str, tmp_path: Path) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@kasmina-test-{os.getpid()}"
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    with listen(address) as manager:
        notifier = Notifier.from_environ(environ)
        assert environ == {"HOME": "/"} and notifier.watchdog_s == 2.0 and notifier.listening
        notifier.ready("up\nREADY=0")
        notifier.status("one")
        notifier.status("one")
        notifier.stopping()
        notifier.close()
        notifier.status("unheard")
        assert heard(manager) == ["READY=1\nSTATUS=up READY=0", "STATUS=one", "STOPPING=1\nSTATUS=stopping"]


def test_the_dog_is_petted_often_enough_and_not_always(tmp_path: Path) -> None:
    clock = Clock()
    with listen(str(tmp_path / "n")) as manager:
        notifier = Notifier(str(tmp_path / "n"), 2.0, timer=clock)
        for tick in range(100):
            clock.now = tick * 0.1
            notifier.pet()
        pets = heard(manager)
        assert set(pets) == {"WATCHDOG=1"}
        assert 10 / 2.0 * 2 <= len(pets) <= 10 / 2.0 * PETS_A_WATCHDOG + 1
        with notifier.allow(30.0):
            pass
        with notifier.allow(1.0):
            pass
        assert heard(manager) == ["WATCHDOG_USEC=30000000\nWATCHDOG=1", "WATCHDOG_USEC=2000000\nWATCHDOG=1"]


def test_without_a_manager_nothing_is_said_and_nothing_raises(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "none")}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        notifier = Notifier.from_environ({**environ, "WATCHDOG_USEC": "1000000"})
        assert not notifier.listening
        notifier.ready("")
        notifier.pet()
    assert Notifier.from_environ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier.from_environ({"WATCHDOG_USEC": "soon"}).watchdog_s is None


def test_a_manager_that_does_not_read_never_blocks_the_loop(tmp_path: Path) -> None:
    with listen(str(tmp_path / "n")):
        notifier = Notifier(str(tmp_path / "n"))
        for i in range(5000):
            notifier.status(str(i))


def test_a_silent_loop_is_stuck_unless_its_step_may_be_silent() -> None:
    clock = Clock()
    heart = Heart(Notifier(watchdog_s=10.0), timer=clock)
    clock.now = 10.0
    assert not heart.stuck
    clock.now = 10.1
    assert heart.stuck
    heart.beat()
    with heart.allow(100.0):
        clock.now += 99
        assert not heart.stuck
        clock.now += 2
        assert heart.stuck
    assert not heart.stuck
    clock.now += 11
    stop = threading.Event()
    assert heart.stuck and not BeatingStop(stop, heart).is_set() and not heart.stuck
    stop.set()
    assert BeatingStop(stop, heart).is_set()


def test_the_health_socket_answers_however_deep_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    path = folder / "agent.sock"
    path.write_bytes(b"left by a killed agent")
    served = HealthSocket(path, lambda: {"status": "ok", "n": 1})
    served.start()
    try:
        assert stat.S_ISSOCK(path.stat().st_mode) and path.stat().st_mode & 0o777 == 0o600
        assert [ask(path) for _ in range(20)] == [{"status": "ok", "n": 1}] * 20
    finally:
        served.close()
        served.close()
    assert not path.exists() and ask(path) is None


def test_one_who_connects_and_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    served = HealthSocket(path, lambda: {"status": "ok"}, mode=0o660)
    served.start()
    rude = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(4)]
    try:
        assert path.stat().st_mode & 0o777 == 0o660
        for sock in rude:
            sock.connect(str(path))
        assert ask(path) == {"status": "ok"}
    finally:
        for sock in rude:
            sock.close()
        served.close()


def test_an_answer_that_fails_or_is_too_long_is_an_answer(tmp_path: Path) -> None:
    answers = iter([lambda: 1 / 0, lambda: {"x": "y" * MAX_ANSWER_BYTES}, lambda: {"status": "ok"}])
    served = HealthSocket(tmp_path / "s", lambda: next(answers)())  # type: ignore[arg-type, return-value]
    served.start()
    try:
        first, second, third = (ask(tmp_path / "s") for _ in range(3))
    finally:
        served.close()
    assert first is not None and first["status"] == "unknown" and first["problems"] == ["ZeroDivisionError"]
    assert second is not None and second["status"] == "unknown"
    assert third == {"status": "ok"}


def test_a_socket_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x").touch()
    with pytest.raises(StorageError, match="no health socket"):
        HealthSocket(tmp_path / "s", dict).start()


def test_a_liar_behind_the_socket_is_not_believed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(4)
        assert ask(tmp_path / "s", timeout_s=0.1) is None  # never answers
        peer, _ = listener.accept()
        peer.close()
        for said in (b"[1]", b"{", b"x" * (2 * MAX_ANSWER_BYTES)):

            def say(what: bytes = said) -> None:
                other, _ = listener.accept()
                with other:
                    other.sendall(what)

            thread = threading.Thread(target=say)
            thread.start()
            assert ask(tmp_path / "s", timeout_s=1.0) is None
            thread.join()


@given(st.integers(0, 10**9))
def test_the_brake_only_grows_and_ends_somewhere(ends: int) -> None:
    assert 0.0 <= delay_s(ends) <= delay_s(ends + 1) <= LONGEST_DELAY_S
    assert (delay_s(ends) == 0.0) == (ends < FREE_STARTS)


def test_early_ends_are_counted_and_a_lasting_run_forgets_them(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    waits = [StartCounter(path, "boot-1").begin() for _ in range(7)]
    assert waits == [0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 8.0]
    assert StartCounter(path, "boot-2").begin() == 0.0
    counter = StartCounter(path, "boot-2")
    assert counter.early_ends == 1
    counter.begin()
    counter.settle()
    assert StartCounter(path, "boot-2").early_ends == 0


@given(st.binary(max_size=200) | st.sampled_from([b"[]", b"{}", b'{"early_ends":true,"machine_boot":"b"}', b"1e999"]))
def test_a_rotten_count_brakes_nothing(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "starts"
        path.write_bytes(data)
        assert StartCounter(path, "b").begin() == 0.0
        assert json.loads(path.read_bytes())["early_ends"] == 1


def test_a_start_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    counter = StartCounter(tmp_path / "gone" / "starts", "b")
    assert counter.begin() == 0.0
    counter.settle()


def test_usage_is_read_from_proc_and_absent_where_there_is_none(tmp_path: Path) -> None:
    before = read_usage()
    assert before.rss_bytes and before.rss_bytes > 5_000_000 and before.threads and before.open_files
    files = [open(os.devnull) for _ in range(10)]  # noqa: SIM115
    assert wait_for(lambda: read_usage().open_files, "a count") >= before.open_files + 10  # type: ignore[operator]
    for file in files:
        file.close()
    assert read_usage(tmp_path) == Usage(None, None, None)
