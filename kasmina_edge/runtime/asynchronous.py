"""Inference for asyncio: one thread that answers one frame after another, and cancellation that loses nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from kasmina_edge.errors import EngineError

T = TypeVar("T")


class _Asked:
    """One call that waits for its turn, and the loop that waits for it."""

    __slots__ = ("answer", "call", "loop", "x")

    def __init__(self, call: Callable[[Any], Any], x: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.call, self.x, self.loop = call, x, loop
        self.answer: Future[Any] = Future()

    def begins(self) -> bool:
        """Whether somebody still waits for it; from here on it cannot be cancelled."""
        return not self.loop.is_closed() and self.answer.set_running_or_notify_cancel()

    def fail(self, exc: BaseException) -> None:
        if not self.loop.is_closed():
            self.answer.set_exception(exc)


class AsyncLane:
    """Runs calls one after another on a thread, for tasks of any number of event loops.

    One call is with the thread; who comes then waits for its turn, in order, without blocking its loop. A task that is
    cancelled leaves the queue: a call that has not begun never runs, one that runs is finished and its answer is
    dropped. The same goes for the calls of a loop that was closed.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._waiting: deque[_Asked] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="kasmina-async", daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[Any], T], x: Any) -> T:
        """``call(x)`` on the thread.

        Raises:
            EngineError: The runtime was closed before its turn came.
            Exception: What ``call`` raises.
        """
        asked = _Asked(call, x, asyncio.get_running_loop())
        with self._turn:
            if self._closed:
                raise _closed()
            self._waiting.append(asked)
            self._turn.notify()
        try:
            found: T = await asyncio.wrap_future(asked.answer)
        except asyncio.CancelledError:
            with self._turn, suppress(ValueError):  # its turn may have come
                self._waiting.remove(asked)
            raise
        return found

    def close(self) -> None:
        """Let the call that runs end, wake all that wait with an `EngineError`, and end the thread."""
        with self._turn:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._turn.notify()
        for asked in left:
            if asked.begins():
                asked.fail(_closed())
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._turn:
                while not self._waiting and not self._closed:
                    self._turn.wait()
                if not self._waiting:
                    return
                asked = self._waiting.popleft()
            if asked.begins():
                try:
                    found = asked.call(asked.x)
                except BaseException as exc:  # as the caller would have met it
                    asked.fail(exc)
                else:
                    if not asked.loop.is_closed():
                        asked.answer.set_result(found)
                    del found
            del asked  # an idle thread keeps nobody's frame


def _closed() -> EngineError:
    return EngineError("the runtime is closed", "Open it again.")
