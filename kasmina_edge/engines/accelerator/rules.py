"""When an accelerator is late, hung, taken out, tried again and trusted: figures and verdicts, no input or output."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class SupervisorRules:
    """The limits that a supervised accelerator is held to.

    The defaults are those of docs/decisions/0027-accelerator-in-its-own-process.md.

    Attributes:
        gap_ms: The longest an app may wait for an answer while the accelerator fails; the twin's own time is part
            of it, so a twin slower than this cannot keep it.
        deadline_factor: A call may take so many times the self-test's 99th percentile.
        deadline_floor_ms: And never less than this: a busy system stops any process for some milliseconds, and a
            pause of the system is no fault of the accelerator.
        hang_ms: A call out for longer than this is a hang, and the worker is killed.
        late_limit: So many late answers among the last ``late_window`` calls take the accelerator out as slow.
        late_window: See ``late_limit``.
        probation_frames: After every start so many frames are answered by the twin and compared.
        verify_every: In service, every so many frames the twin computes too and is compared before anything is
            returned; 1: every frame; None: by `verify_interval`.
        check_share: How much of the accelerator's time those comparisons may cost when ``verify_every`` is None.
        canary_every: After every so many frames the accelerator answers a self-test vector; 0: never.
        start_timeout_s: Loading the model, the first answer and the self-test may take so long.
        open_wait_s: Opening an engine waits so long for the first start; then the twin answers until it is done.
        backoff_first_s: Wait before the first new start; doubles with every failure in a row.
        backoff_max_s: The longest wait.
        backoff_jitter: Share by which a wait is varied both ways.
        steady_s: After so long in service without a fault the waits begin small again.
        startup_calls: How many calls the self-test makes when a worker starts; each vector is asked at least once.
    """

    gap_ms: float = 200.0
    deadline_factor: float = 10.0
    deadline_floor_ms: float = 20.0
    hang_ms: float = 1000.0
    late_limit: int = 5
    late_window: int = 50
    probation_frames: int = 20
    verify_every: int | None = None
    check_share: float = 0.05
    canary_every: int = 32
    start_timeout_s: float = 30.0
    open_wait_s: float = 5.0
    backoff_first_s: float = 0.25
    backoff_max_s: float = 60.0
    backoff_jitter: float = 0.25
    steady_s: float = 60.0
    startup_calls: int = 64


_TICKS = 10.0  # ms kept free below the gap: the system's time to wake this process twice


def deadline_ms(rules: SupervisorRules, *, p99_ms: float, twin_ms: float) -> float | None:
    """How long one call may take, so that deadline and twin together stay within the gap.

    Where the twin alone is slower than the gap, nothing can keep it, and the deadline is the gap.

    Args:
        rules: The limits.
        p99_ms: The accelerator's 99th percentile in the self-test, the way through the worker included.
        twin_ms: What the twin needs for one frame.

    Returns:
        Milliseconds; None when the accelerator needs longer than the gap leaves it.

    >>> deadline_ms(SupervisorRules(), p99_ms=2.6, twin_ms=30.0)
    26.0
    >>> [deadline_ms(SupervisorRules(), p99_ms=p99, twin_ms=30.0) for p99 in (50.0, 190.0)]
    [160.0, None]
    """
    wanted = max(rules.deadline_floor_ms, rules.deadline_factor * p99_ms)
    left = rules.gap_ms - _TICKS - twin_ms
    cap = max(left, rules.deadline_floor_ms) if left > 0 else rules.gap_ms
    return None if p99_ms > cap else min(wanted, cap)


def verify_interval(rules: SupervisorRules, *, accelerator_ms: float, twin_ms: float) -> int:
    """Every how many frames the twin computes too; 0: never.

    The twin computes while the accelerator does. Where it is no slower, a comparison delays nothing and every frame is
    compared; elsewhere the comparisons cost ``check_share`` of the accelerator's time. A twin that is slower than the
    gap would break it itself: then the known vectors alone watch over the accelerator.

    >>> verify_interval(SupervisorRules(), accelerator_ms=3.0, twin_ms=2.0)
    1
    >>> [verify_interval(SupervisorRules(), accelerator_ms=2.4, twin_ms=twin) for twin in (164.0, 392.0)]
    [1347, 0]
    """
    if rules.verify_every is not None:
        return max(rules.verify_every, 1)
    if twin_ms > rules.gap_ms:
        return 0
    extra = twin_ms - accelerator_ms
    return max(1, math.ceil(extra / (rules.check_share * max(accelerator_ms, 1e-3)))) if extra > 0 else 1


def probation(rules: SupervisorRules, wrong_before: int) -> int:
    """Frames of probation: doubled for every time that this accelerator has answered wrongly, 64-fold at most.

    >>> [probation(SupervisorRules(), n) for n in (0, 1, 3, 99)]
    [20, 40, 160, 1280]
    """
    return rules.probation_frames << min(wrong_before, 6)


class LateWindow:
    """Counts late answers among the last calls.

    >>> window = LateWindow(limit=2, window=10)
    >>> window.late(3), window.late(20), window.late(25)
    (False, False, True)
    """

    def __init__(self, *, limit: int, window: int) -> None:
        self._limit, self._window = limit, window
        self._late: deque[int] = deque()

    def late(self, call: int) -> bool:
        """Call number ``call`` was late; whether that makes the accelerator slow."""
        self._late.append(call)
        while self._late[0] <= call - self._window:
            self._late.popleft()
        return len(self._late) >= self._limit


class Backoff:
    """Waits that double from failure to failure, varied so that a fleet does not move in step.

    Args:
        rules: First and longest wait, jitter, and how long steady service takes to be forgiven.
        rng: Draws the jitter.
    """

    def __init__(self, rules: SupervisorRules, rng: random.Random) -> None:
        self._rules, self._rng = rules, rng
        self._failures = 0

    def wait_s(self, *, in_service_s: float = 0.0) -> float:
        """Seconds to wait now, after a fault that followed ``in_service_s`` seconds of service."""
        rules = self._rules
        if in_service_s >= rules.steady_s:
            self._failures = 0
        wait = min(rules.backoff_first_s * 2.0 ** min(self._failures, 32), rules.backoff_max_s)
        self._failures += 1
        return min(wait * (1 + self._rng.uniform(-1, 1) * rules.backoff_jitter), rules.backoff_max_s)
