"""The thread that starts an accelerator's worker, watches it, takes it out, and tries again."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from kasmina_edge.engines.accelerator.channel import WorkerSpec
from kasmina_edge.engines.accelerator.device import Reset
from kasmina_edge.engines.accelerator.events import AcceleratorEvent, Cause, EventKind
from kasmina_edge.engines.accelerator.known import KnownAnswers, all_finite, difference
from kasmina_edge.engines.accelerator.link import WorkerFailedError, WorkerGoneError, WorkerLink
from kasmina_edge.engines.accelerator.rules import (
    Backoff,
    SupervisorRules,
    deadline_ms,
    probation,
    verify_interval,
)

log = logging.getLogger(__name__)
_REAP_S = 1.0
_GENTLE_S = 0.3
_STARTUP_S = 2.0


class WrongAnswerError(Exception):
    """The accelerator's answer is no number, or differs too much from what is known to be right."""


class _TooSlowError(Exception):
    """The self-test took longer than the gap allows."""


class Keeper:
    """Owns the worker; `link` is the worker that frames may be sent to, or None.

    All of its work is done on one thread of its own, because the kernel ends a worker with the thread that started it.
    The app's threads only read `link`, and call `report` and `proven`.

    Args:
        spec: What the worker loads.
        known: The start-up self-test.
        rules: The limits.
        reset: Called when a worker was taken out; what it did goes into the event.
        clock: Wall clock, seconds since 1970 UTC.
        timer: Monotonic seconds.
        rng: Varies the waits.
        changed: Called after every change of ``link`` or ``cause``; gives who answers from now on.

    Attributes:
        link: The worker in service or on probation.
        cause: Kind of the last fault while it lasts; "" without one.
        detail: What was seen of it.
        on_change: Called on the keeper's thread with every event.
        fallbacks: Times taken out, by cause.
        starts: Workers started.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        known: KnownAnswers,
        rules: SupervisorRules,
        *,
        reset: Reset,
        clock: Callable[[], float],
        timer: Callable[[], float],
        rng: random.Random,
        changed: Callable[[], str],
    ) -> None:
        self.link: WorkerLink | None = None
        self.cause: str = ""
        self.detail: str = ""
        self.on_change: Callable[[AcceleratorEvent], None] | None = None
        self.fallbacks: dict[str, int] = {}
        self.starts = 0
        self._spec, self._known, self._rules = spec, known, rules
        self._reset, self._clock, self._timer, self._changed = reset, clock, timer, changed
        self._backoff = Backoff(rules, rng)
        self._wake = threading.Condition()
        self._faults: deque[tuple[WorkerLink, Cause, str]] = deque()
        self._proven: WorkerLink | None = None
        self._closing = False
        self._tried = threading.Event()
        self._start_at = 0.0
        self._graves: list[WorkerLink] = []
        self._wrongs = 0
        self._told = ""
        self._told_fault = ""
        self._starting: WorkerLink | None = None
        self._thread = threading.Thread(target=self._run, name="kasmina-accelerator", daemon=True)

    def start(self, wait_s: float) -> None:
        """Begin; returns when the first start succeeded or failed, or after ``wait_s`` seconds."""
        self._thread.start()
        self.wait(wait_s)

    def wait(self, wait_s: float) -> bool:
        """Wait for the end of the first start; whether a worker is there."""
        self._tried.wait(wait_s)
        return self.link is not None

    def report(self, link: WorkerLink, cause: Cause, detail: str) -> None:
        """Take ``link`` out at once; the rest is done on the keeper's thread."""
        with self._wake:
            if self.link is link:
                self.link, self.cause, self.detail = None, cause, detail
                self._changed()
                self._faults.append((link, cause, detail))
                self._wake.notify()

    def proven(self, link: WorkerLink) -> None:
        """``link`` came through its probation."""
        with self._wake:
            if self.link is link:
                link.in_service_at = self._timer()
                self._proven = link
                self._wake.notify()

    def hurry(self) -> None:
        """Try again now: whoever held the device has let go of it."""
        with self._wake:
            self._start_at = self._timer()
            self._wake.notify()

    def close(self, wait_s: float = 1.0) -> None:
        """End the worker. Whoever is in a call gets an end of line; a worker that hangs is killed."""
        with self._wake:
            self._closing, self.link = True, None
            starting = self._starting
            self._wake.notify()
        if starting is not None:
            starting.kill()
        self._thread.join(wait_s)

    def _run(self) -> None:
        worker: WorkerLink | None = None
        while not self._closing:
            try:
                worker = self._bury(worker)
                self._announce()
                if worker is None and self._timer() >= self._start_at:
                    worker = self._try()
                    self._tried.set()
                self._watch()
            except Exception as exc:  # a fault of ours: the accelerator is out for a while, not for good
                log.exception("the accelerator's keeper failed")
                self._start_over(worker, f"its keeper failed ({_said(exc)})")
                worker = None
            with self._wake:
                if not (self._closing or self._faults or self._proven):
                    self._wake.wait(self._nap(worker))
        self._tried.set()
        if worker is not None:
            worker.dismiss()
            if not worker.reap(_GENTLE_S):
                worker.kill()
                worker.reap(_GENTLE_S)
            worker.hang_up()

    def _nap(self, worker: WorkerLink | None) -> float:
        if worker is not None:
            return self._rules.hang_ms / 1000.0
        return max(self._start_at - self._timer(), 0.0)

    def _try(self) -> WorkerLink | None:
        """One start, self-test included; None when it failed."""
        self._graves = [grave for grave in self._graves if not grave.reap(0.0)]
        if self._graves:  # it holds the device, and a second worker would only hang beside it
            self._start_at = self._timer() + self._backoff.wait_s()
            return None
        self.starts += 1
        link: WorkerLink | None = None
        try:
            link = self._starting = WorkerLink(self._spec, self._rules, timer=self._timer)
            link.ready(self._rules.start_timeout_s, lambda: self._closing)
            self._examine(link)
        except Exception as exc:  # whatever it was, the twin answers and the next try comes
            if not self._closing:
                cause = _cause(exc)
                fault = "" if isinstance(exc, _EXPECTED) else type(exc).__name__
                detail = _said(exc) if fault else str(exc) or ("no answer in the self-test" if cause == "hang" else "")
                self._take_out(link, cause, detail, first=not self._tried.is_set(), fault=fault)
            elif link is not None:
                link.kill()
                link.reap(_REAP_S)
                link.hang_up()
            return None
        finally:
            self._starting = None
        link.probation = probation(self._rules, self._wrongs)
        with self._wake:
            if not self._closing:
                self.link = link
                self._changed()
        return link

    def _examine(self, link: WorkerLink) -> None:
        """The self-test through the worker; sets the deadline and how often the twin computes too.

        Raises:
            WrongAnswerError: A vector was answered wrongly.
            _TooSlowError: The answers take longer than the gap leaves.
            TimeoutError: One did not come back.
        """
        rules, frames = self._rules, self._known.frames
        until = self._timer() + rules.start_timeout_s
        times: list[float] = []
        for i in range(1 + max(len(frames), rules.startup_calls)):
            inputs, expected = frames[i % len(frames)]
            began = self._timer()
            if i > len(frames) and sum(times) > _STARTUP_S:
                break
            with link.lock:
                link.ask(inputs)
                answers = self._answer(link, until)
            times.append(self._timer() - began)
            judge(answers, expected, self._known.tolerance, f"self-test vector {i % len(frames)}")
        p50, p99 = np.percentile(times[1:], [50, 99]) * 1000.0  # the first run uploads weights
        limit = deadline_ms(rules, p99_ms=float(p99), twin_ms=self._known.twin_ms)
        if limit is None:
            raise _TooSlowError(f"the self-test's p99 is {p99:.1f} ms, the gap is {rules.gap_ms:g} ms")
        link.deadline_s = limit / 1000.0
        link.verify_every = (
            1
            if self._spec.stateful and rules.verify_every is None
            else verify_interval(rules, accelerator_ms=float(p50), twin_ms=self._known.twin_ms)
        )
        link.check_in = link.verify_every

    def _answer(self, link: WorkerLink, until: float) -> list[np.ndarray]:
        while True:
            try:
                return link.answer(0.1)
            except TimeoutError:
                if self._closing or self._timer() >= until:
                    raise

    def _watch(self) -> None:
        """A call that is out too long while the app asks for nothing more."""
        link = self.link
        if link is None:
            return
        link.listen()
        hang_s = self._rules.hang_ms / 1000.0
        if link.out and self._timer() - link.asked_at > hang_s and link.lock.acquire(blocking=False):
            try:
                hung = link.out and not link.arrived() and self._timer() - link.asked_at > hang_s
            finally:
                link.lock.release()
            if hung:
                self.report(link, "hang", f"no answer for {self._timer() - link.asked_at:.1f} s")

    def _bury(self, worker: WorkerLink | None) -> WorkerLink | None:
        while self._faults:
            link, cause, detail = self._faults.popleft()
            self._take_out(link, cause, detail)
            worker = None if link is worker else worker
        return worker

    def _start_over(self, worker: WorkerLink | None, detail: str) -> None:
        """After a fault of ours: let go of every worker, and try again when a wait is over."""
        with self._wake:
            link, self.link, self._proven, self.cause, self.detail = self.link, None, None, "crash", detail
            self._faults.clear()
        self._start_at = self._timer() + self._backoff.wait_s()
        for one in {worker, link}:
            if one is not None:
                self._clean(one)
        self._tried.set()
        self._changed()

    def _clean(self, link: WorkerLink) -> str:
        """Kill a worker and reset its device; what was done."""
        try:
            link.kill()
            dead = link.reap(_REAP_S)
            link.hang_up()
        except Exception as exc:
            log.exception("clearing away worker %d failed", link.pid)
            self._graves.append(link)
            return f"clearing away worker {link.pid} failed ({_said(exc)})"
        if dead:
            return self._reset_device()
        self._graves.append(link)
        return f"worker {link.pid} cannot be killed, its driver holds it"

    def _take_out(
        self, link: WorkerLink | None, cause: Cause, detail: str, *, first: bool = False, fault: str = ""
    ) -> None:
        """Kill, reset, decide when to try again, and tell; ``fault`` is the kind of an error nobody expected."""
        served_s = 0.0
        before = self.cause
        was_in_service = link is not None and link.in_service_at is not None
        if link is not None:
            served_s = self._timer() - link.in_service_at if link.in_service_at is not None else 0.0
            if cause == "crash":
                detail = ", ".join(filter(None, (detail, link.epitaph())))
            detail = f"{detail}; {self._clean(link)}"
        wait_s = self._backoff.wait_s(in_service_s=served_s)
        self._start_at = self._timer() + wait_s
        self.cause, self.detail = cause, detail
        self._wrongs += cause == "wrong"
        self._changed()
        if was_in_service or first:
            self.fallbacks[cause] = self.fallbacks.get(cause, 0) + 1
        if was_in_service or first or (self._told, self._told_fault) != (cause, fault):
            self._told_fault = fault
            self._tell(cause, detail, wait_s)
        else:
            log.debug("accelerator still out (%s): %s; next try in %.1f s", before, detail, wait_s)

    def _reset_device(self) -> str:
        try:
            return self._reset()
        except Exception as exc:
            log.exception("the reset of the accelerator failed")
            return f"the reset failed ({exc})"

    def _announce(self) -> None:
        link, self._proven = self._proven, None
        if link is not None and link is self.link:
            self.cause = self.detail = ""
            self._changed()
            if self._told:
                self._tell("back", f"{link.runs_on}, deadline {link.deadline_s * 1000:.0f} ms", 0.0)
            else:
                log.info("%s in service, deadline %.0f ms", link.runs_on, link.deadline_s * 1000)

    def _tell(self, kind: EventKind, detail: str, wait_s: float) -> None:
        self._told = kind
        total = sum(self.fallbacks.values())
        event = AcceleratorEvent(kind, self._clock(), detail, self._changed(), total, wait_s)
        if kind == "back":
            log.info("accelerator is back: %s", detail)
        else:
            log.warning("accelerator taken out (%s): %s; next try in %.1f s", kind, detail, wait_s)
        if self.on_change is not None:
            try:
                self.on_change(event)
            except Exception:
                log.exception("a listener for accelerator events failed")


def judge(answers: list[np.ndarray], expected: list[np.ndarray] | None, tolerance: float, what: str) -> None:
    """Refuse an answer that is no number, or that differs from the expected one.

    Raises:
        WrongAnswerError: It does; the message carries both numbers.
    """
    if not all_finite(answers):
        raise WrongAnswerError(f"{what}: not a number")
    if expected is not None:
        off = difference(answers, expected)
        if not off <= tolerance:
            raise WrongAnswerError(f"{what}: differs by {off:g}, {tolerance:g} is accepted")


def _cause(exc: Exception) -> Cause:
    for kind, cause in _CAUSES:
        if isinstance(exc, kind):
            return cause
    return "crash"


def _said(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"


_EXPECTED = (WorkerFailedError, WorkerGoneError, WrongAnswerError, _TooSlowError, TimeoutError)
_CAUSES: tuple[tuple[type[Exception], Cause], ...] = (
    (WorkerFailedError, "gone"),
    (WrongAnswerError, "wrong"),
    (_TooSlowError, "slow"),
    (TimeoutError, "hang"),
)
