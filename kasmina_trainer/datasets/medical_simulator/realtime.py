"""Windows that arrive by the clock, and an answerer that must answer each in time.

A monitor's window is due when its last sample has been taken, whether or not the last one was answered; so window k is
due at ``began + k * period``, and a slow answer makes the next one late as well. Three times are kept of each: how late
the process was woken (the machine's doing), how long answering took, and from due to answered, against which the
deadline is held. Clock and sleep are passed in; a load beside it and what is done meanwhile (an update, say) are too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

DEADLINE_MS = 5.0
GIVE_BACK_S = 0.0002
Answer = Callable[[Any], object]
Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Percentiles of one kind of time, milliseconds; nearest rank, so each is a time that was seen."""

    p50: float
    p99: float
    p999: float
    worst: float

    @classmethod
    def of(cls, times_ms: Times) -> Spread:
        """Of at least one time."""
        rising = np.sort(times_ms)
        p50, p99, p999 = (float(rising[max(0, int(np.ceil(q * len(rising))) - 1)]) for q in (0.5, 0.99, 0.999))
        return cls(p50, p99, p999, float(rising[-1]))

    def __str__(self) -> str:
        return f"p50 {self.p50:.3f}, p99 {self.p99:.3f}, p99.9 {self.p999:.3f}, worst {self.worst:.3f} ms"


@dataclass(frozen=True)
class RealTimeReport:
    """What a run saw.

    Attributes:
        windows: How many were answered.
        deadline_ms: What each had.
        missed: How many were answered later than that after they were due.
        failed: Messages of answers that raised, in order; these windows count as missed.
        response: From due to answered.
        service: From begun to answered: what the answerer itself takes.
        woken: From due, or from the end of the answer before where that was later, to begun.
        jitter_ms: Standard deviation of the service.
        done: Names of what was done meanwhile.
    """

    windows: int
    deadline_ms: float
    missed: int
    failed: tuple[str, ...]
    response: Spread
    service: Spread
    woken: Spread
    jitter_ms: float
    done: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every window was answered in time."""
        return self.missed == 0

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.windows} windows within {self.deadline_ms:g} ms: {self.missed} missed, {len(self.failed)} failed",
            f"  from due to answered  {self.response}",
            f"  answering             {self.service}, deviation {self.jitter_ms:.3f} ms",
            f"  woken late            {self.woken}",
            *(f"  meanwhile             {name}" for name in self.done),
        ]


def validate(
    answer: Answer,
    windows: Sequence[Any],
    *,
    count: int,
    period_s: float,
    deadline_ms: float = DEADLINE_MS,
    meanwhile: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> RealTimeReport:
    """Let windows arrive and see whether each is answered in time.

    Args:
        answer: Takes a window, e.g. ``runtime.infer``.
        windows: Taken in turns.
        count: How many arrive.
        period_s: From one to the next.
        deadline_ms: From due to answered.
        meanwhile: Done once, one after the other, on a thread of their own, from a third of the run on. What they raise
            is raised here, after the last window.
        clock: Nanoseconds that only go up.
        sleep: Waits so many seconds.

    Raises:
        InputError: No windows, or a count, period or deadline that is not above 0.
    """
    if not len(windows) or count < 1 or not period_s > 0 or not deadline_ms > 0:
        raise InputError(
            f"{count} of {len(windows)} windows every {period_s} s within {deadline_ms} ms: expected all above 0"
        )
    beside = _Beside(dict(meanwhile or {}))
    due, begun, ended = (np.zeros(count, np.int64) for _ in range(3))
    failed: dict[int, str] = {}
    began = clock() + round(period_s * 1e9)
    for i in range(count):
        if i == count // 3:
            beside.start()
        due[i] = began + round(i * period_s * 1e9)
        while (left := due[i] - clock()) > 0:
            sleep(left / 1e9)
        window = windows[i % len(windows)]
        begun[i] = clock()
        try:
            answer(window)
        except Exception as exc:  # a monitor goes on with the next window
            failed[i] = f"window {i}: {type(exc).__name__}: {exc}"
        ended[i] = clock()
    beside.join()
    response, service = (ended - due) / 1e6, (ended - begun) / 1e6
    free = np.maximum(due, np.concatenate([due[:1], ended[:-1]]))
    late = response > deadline_ms
    late[list(failed)] = True
    return RealTimeReport(
        windows=count,
        deadline_ms=deadline_ms,
        missed=int(late.sum()),
        failed=tuple(failed.values()),
        response=Spread.of(response),
        service=Spread.of(service),
        woken=Spread.of((begun - free) / 1e6),
        jitter_ms=float(service.std()),
        done=tuple(beside.done),
    )


class _Beside:
    """What is done beside the windows, on its own thread."""

    def __init__(self, tasks: dict[str, Callable[[], object]]) -> None:
        self._tasks = tasks
        self.done: list[str] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="meanwhile", daemon=True)
        self._started = False

    def start(self) -> None:
        if self._tasks:
            self._started = True
            self._thread.start()

    def join(self) -> None:
        if self._started:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for name, task in self._tasks.items():
                task()
                self.done.append(name)
        except BaseException as exc:  # handed to the caller's thread
            self._error = exc


@contextmanager
def first_in_line() -> Iterator[bool]:
    """This process before every ordinary one, as a monitor runs; whether the machine allows it is yielded.

    Linux's ``SCHED_FIFO`` (needs root, ``CAP_SYS_NICE`` or ``LimitRTPRIO=``) for all threads, the calling one before
    the others: a thread that is not first could hold the interpreter and be kept from going on. They give it back
    after `GIVE_BACK_S` instead of five milliseconds. What is begun inside, threads and processes, is first as well, so
    begin other processes outside.
    """
    interval, own = sys.getswitchinterval(), threading.get_native_id()
    allowed = _queued("SCHED_FIFO", lambda thread: 2 if thread == own else 1)
    sys.setswitchinterval(GIVE_BACK_S)
    try:
        yield allowed
    finally:
        sys.setswitchinterval(interval)
        if allowed:
            _queued("SCHED_OTHER", lambda thread: 0)


@contextmanager
def awake() -> Iterator[bool]:
    """No core goes to sleep while nothing is to be done; whether the machine allows it is yielded.

    Linux's latency request (``/dev/cpu_dma_latency``, root or a udev rule; the kernel's guide to power management,
    "PM Quality of Service"): waking a core is time that the next window waits. It costs the power of a busy core.
    """
    try:
        request = os.open("/dev/cpu_dma_latency", os.O_WRONLY)
    except OSError:
        yield False
        return
    try:
        os.write(request, (0).to_bytes(4, sys.byteorder))
        yield True
    finally:
        os.close(request)


def bare(steps: int = 8000) -> Answer:
    """An answerer that only counts: what it takes from due to answered is the machine's own doing.

    Args:
        steps: How far it counts; 8000 is some 0.4 ms.
    """

    def answer(_: Any) -> int:
        found = 0
        for _ in range(steps):
            found += 1
        return found

    return answer


def _queued(policy: str, place: Callable[[int], int]) -> bool:
    """Put all threads of this process under a policy; False where there is none or it is not allowed."""
    try:
        for task in Path("/proc/self/task").iterdir():
            try:
                os.sched_setscheduler(int(task.name), getattr(os, policy), os.sched_param(place(int(task.name))))
            except ProcessLookupError:  # it has ended meanwhile
                continue
    except (AttributeError, OSError):
        return False
    return True


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other processes that compute without a pause, at this process's own priority.

    Args:
        processes: How many; as many as cores is a machine at its limit.
    """
    code = "while True:\n sum(i * i for i in range(10000))"
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            running.append(subprocess.Popen([sys.executable, "-c", code]))
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
