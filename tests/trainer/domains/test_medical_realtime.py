"""Windows that arrive by a clock of the test's own: what is counted, what is late, what is done meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.medical_simulator.realtime import (
    GIVE_BACK_S,
    Spread,
    awake,
    bare,
    busy,
    first_in_line,
    validate,
)


class Clock:
    """Nanoseconds that pass only in `sleep` and where a test says so."""

    def __init__(self, *, oversleeps_s: float = 0.0) -> None:
        self.now = 1_000_000
        self.oversleeps_s = oversleeps_s

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round((seconds + self.oversleeps_s) * 1e9)


def run(clock: Clock, takes_ms: list[float], **options: object):
    given = iter(takes_ms)

    def answer(_: object) -> None:
        clock.now += round(next(given) * 1e6)

    return validate(
        answer,
        [0],
        count=len(takes_ms),
        period_s=0.01,
        clock=clock,
        sleep=clock.sleep,
        **options,  # type: ignore[arg-type]
    )


def test_every_time_is_what_the_clock_says() -> None:
    found = run(Clock(), [1.0] * 98 + [2.0, 4.0])
    assert found.ok and found.windows == 100 and found.missed == 0
    assert found.response == Spread(1.0, 2.0, 4.0, 4.0) == found.service
    assert found.woken == Spread(0.0, 0.0, 0.0, 0.0)
    assert np.isclose(found.jitter_ms, np.std([1.0] * 98 + [2.0, 4.0]))


def test_a_slow_answer_makes_the_next_windows_late_as_well() -> None:
    found = run(Clock(), [1.0, 28.0, 3.0, 1.0, 1.0])
    assert found.missed == 3  # 28 ms; due 10 ms later, begun 18 ms late; the third still 11 ms late
    assert found.response.worst == 28.0 and found.service.worst == 28.0 and found.woken.worst == 0.0


def test_waking_late_counts_against_the_deadline_but_not_as_answering() -> None:
    found = run(Clock(oversleeps_s=0.006), [1.0] * 10)
    assert found.missed == 10 and found.service.worst == 1.0
    assert np.isclose(found.woken.p50, 6.0) and np.isclose(found.response.p50, 7.0)


def test_an_answer_that_raises_is_a_missed_window_and_the_run_goes_on() -> None:
    clock = Clock()

    def answer(window: int) -> None:
        if window == 1:
            raise ValueError("no")

    found = validate(answer, [0, 1, 2], count=6, period_s=0.01, clock=clock, sleep=clock.sleep)
    assert found.missed == 2 and found.failed == ("window 1: ValueError: no", "window 4: ValueError: no")
    assert not found.ok and "2 missed, 2 failed" in found.lines()[0]


def test_what_is_done_meanwhile_is_done_once_and_its_error_is_not_lost() -> None:
    clock, done = Clock(), []
    found = validate(
        lambda _: None, [0], count=9, period_s=0.01, clock=clock, sleep=clock.sleep,
        meanwhile={"one": lambda: done.append(1), "two": lambda: done.append(2)},
    )  # fmt: skip
    assert done == [1, 2] and found.done == ("one", "two")

    def wrong() -> None:
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        validate(
            lambda _: None, [0], count=3, period_s=0.01, clock=clock, sleep=clock.sleep, meanwhile={"wrong": wrong}
        )


def test_bad_orders_are_refused() -> None:
    for options in ({"count": 0}, {"period_s": 0.0}, {"deadline_ms": -1.0}):
        with pytest.raises(InputError, match="expected all above 0"):
            validate(lambda _: None, [0], **{"count": 1, "period_s": 1.0, **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="of 0 windows"):
        validate(lambda _: None, [], count=1, period_s=1.0)


def test_percentiles_are_times_that_were_seen() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1, 1001, dtype=np.float64))
    assert Spread.of(times) == Spread(500.0, 990.0, 999.0, 1000.0)
    assert Spread.of(np.array([7.0])) == Spread(7.0, 7.0, 7.0, 7.0)


def test_a_load_is_there_and_gone_again() -> None:
    before = _children()
    with busy(1):
        until = time.monotonic() + 10
        while len(_children()) <= len(before) and time.monotonic() < until:
            pass
        assert len(_children()) == len(before) + 1
    assert len(_children()) == len(before)


def _children() -> list[str]:
    import os

    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [line for line in found.stdout.splitlines() if sys.executable in line]


def test_first_in_line_holds_for_all_threads_and_ends() -> None:
    """A thread of this process that is not first could hold the interpreter while others compute."""
    interval, leave, seen = sys.getswitchinterval(), threading.Event(), []
    thread = threading.Thread(target=leave.wait)
    thread.start()
    with first_in_line() as allowed:
        assert sys.getswitchinterval() == pytest.approx(GIVE_BACK_S)
        for who in (0, thread.native_id):
            seen.append((os.sched_getscheduler(who), os.sched_getparam(who).sched_priority))
    try:
        assert seen == ([(os.SCHED_FIFO, 2), (os.SCHED_FIFO, 1)] if allowed else [(os.SCHED_OTHER, 0)] * 2)
        assert [os.sched_getscheduler(who) for who in (0, thread.native_id)] == [os.SCHED_OTHER] * 2
        assert sys.getswitchinterval() == interval
    finally:
        leave.set()
        thread.join()


def test_a_request_for_cores_that_stay_awake_is_given_back() -> None:
    def held() -> bool:
        names = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return "/dev/cpu_dma_latency" in [os.readlink(name) for name in names if os.path.lexists(name)]

    with awake() as allowed:
        assert allowed == os.access("/dev/cpu_dma_latency", os.W_OK) == held()
    assert not held()


def test_without_leave_cores_may_sleep_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError("no")

    monkeypatch.setattr(os, "open", refused)
    with awake() as allowed:
        assert not allowed


def test_an_answerer_that_only_counts_takes_longer_the_further_it_counts() -> None:
    def spent(steps: int) -> float:
        found = []
        for _ in range(5):
            begun = time.process_time()
            assert bare(steps)(None) == steps
            found.append(time.process_time() - begun)
        return min(found)

    assert spent(200_000) > 5 * spent(2_000)
