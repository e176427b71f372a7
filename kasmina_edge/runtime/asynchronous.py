"""Inference for asyncio: one thread, a bounded number of frames in it, and cancellation that loses nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kasmina_edge.errors import EngineError

PENDING = 8
T = TypeVar("T")


class AsyncLane:
    """Runs calls one after another on a thread, for tasks of any number of event loops.

    At most ``pending`` calls are with the thread; who comes then waits for its turn, in order, without blocking its
    loop. A task that is cancelled gives its place back: a call that has not begun never runs, one that runs is finished
    and its answer is dropped.

    Args:
        pending: Calls that the thread holds at most, the running one included.
    """

    def __init__(self, pending: int = PENDING) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kasmina-async")
        self._lock = threading.Lock()
        self._free = pending
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    async def run(self, call: Callable[[Any], T], x: Any) -> T:
        """``call(x)`` on the thread.

        Raises:
            EngineError: The runtime was closed.
            Exception: What ``call`` raises.
        """
        await self._enter()
        given_up = threading.Event()

        def work() -> T:
            try:
                if given_up.is_set():
                    raise asyncio.CancelledError
                return call(x)
            finally:
                self._leave()

        try:
            running = asyncio.wrap_future(self._thread.submit(work))
        except RuntimeError as exc:
            self._leave()
            raise EngineError("the runtime is closed", "Open it again.") from exc
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            given_up.set()
            raise

    def close(self) -> None:
        """Let the calls that are with the thread end, and end it."""
        self._thread.shutdown(wait=True)

    async def _enter(self) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, turn))
        try:
            await turn
        except asyncio.CancelledError:
            with self._lock:
                if (loop, turn) in self._waiting:
                    self._waiting.remove((loop, turn))
            if not turn.cancelled():  # the place was given, and this task was cancelled before it could take it
                self._leave()
            raise

    def _leave(self) -> None:
        """Hand the place to who waits longest, or keep it free."""
        with self._lock:
            while self._waiting:
                loop, turn = self._waiting.popleft()
                try:
                    loop.call_soon_threadsafe(self._give, turn)
                except RuntimeError:  # that loop is closed, nobody waits there
                    continue
                return
            self._free += 1

    def _give(self, turn: asyncio.Future[None]) -> None:
        if turn.done():  # cancelled meanwhile
            self._leave()
        else:
            turn.set_result(None)
