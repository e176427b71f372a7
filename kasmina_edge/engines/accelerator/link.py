"""One worker process as its supervisor sees it: start, ask, answer, kill. A new worker gets a new `WorkerLink`."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.engines.accelerator.channel import (
    DONE,
    FAILED,
    HEAD,
    MAX_MESSAGE,
    READY,
    RUN,
    TensorMemory,
    WorkerSpec,
    memory,
)
from kasmina_edge.engines.accelerator.rules import LateWindow, SupervisorRules

Array = npt.NDArray[Any]
_MODULE = "kasmina_edge.engines.accelerator.worker"
_ENVIRON = {"PYDANTIC_DISABLE_PLUGINS": "__all__"}  # looked for in every installed package: a tenth of a start
_SLICE_S = 0.1
_TAIL = 4096


def import_path() -> str:
    """This program's ``sys.path`` for a child: absolute, and without what is not there or holds the separator."""
    found = []
    for entry in sys.path:
        try:
            path = os.path.abspath(os.fsdecode(entry))  # "" and relative ones are below the working folder
        except (OSError, TypeError):  # that folder was deleted; no path at all
            continue
        if os.path.exists(path) and os.pathsep not in path:
            found.append(path)
    return os.pathsep.join(dict.fromkeys(found))


class WorkerGoneError(Exception):
    """The worker ended, closed its side, or said something that is not in the protocol."""


class WorkerFailedError(Exception):
    """The engine in the worker raised; the text is its own."""


class WorkerLink:
    """A worker and the way to it. Calls are numbered, and one is out at a time.

    ``lock`` is held by whoever asks or waits for an answer; `kill` needs it not. A call whose answer did not come in
    time stays out (`out`); its late answer is taken by `settle`, so that it can never be read as that of a later call.

    The process is started by the thread that makes the link and lives no longer than that thread.

    Args:
        spec: What it loads.
        rules: Limits for late answers.
        timer: Monotonic seconds.

    Attributes:
        canary: Index of the known vector that is out or was answered last; -1 for a frame.
        probation: Frames still to be compared before it may answer.
        deadline_s: What a call may take; set when the self-test is done.
        verify_every: Every how many frames the twin computes too; set with it.
        check_in: Frames until the next comparison; none comes when it starts at 0.
        canary_in: Frames until the next canary.
        in_service_at: When its probation ended, by ``timer``; None until then.
        asked_at: When the last call was asked, by ``timer``.
        overdue: The call that is out was counted as late.
        closed: The line is closed, and its descriptor may be somebody else's by now; looked at under ``lock``.
    """

    def __init__(self, spec: WorkerSpec, rules: SupervisorRules, *, timer: Callable[[], float] = monotonic) -> None:
        self.lock = threading.Lock()
        self.late = LateWindow(limit=rules.late_limit, window=rules.late_window)
        self.canary = -1
        self.next_canary = 0
        self.probation = 0
        self.deadline_s = rules.start_timeout_s
        self.verify_every = 1
        self.check_in = 1
        self.canary_in = rules.canary_every
        self.in_service_at: float | None = None
        self.runs_on = ""
        self.asked_at = 0.0
        self.overdue = False
        self.closed = False
        self._timer = timer
        self._asked = self._answered = 0
        self._buffer = bytearray(MAX_MESSAGE)
        self._order = bytearray(HEAD.size)
        self._tail = b""
        self._start(spec)

    def _start(self, spec: WorkerSpec) -> None:
        if not sys.executable:
            raise WorkerFailedError("sys.executable is not set, so no worker can be started; set it to a Python's path")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        complaints, their_complaints = os.pipe2(os.O_CLOEXEC)
        tensor_fd = spec_fd = -1
        try:
            for fd in (complaints, their_complaints):
                os.set_blocking(fd, False)  # a worker that complains without end loses words, and does not stop
            tensor_fd = memory("kasmina-tensors", TensorMemory.size_bytes(spec.model))
            spec_fd = spec.to_memory()
            self._tensors = TensorMemory(tensor_fd, spec.model)
            given = (theirs.fileno(), spec_fd, tensor_fd)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, *map(str, given), str(os.getpid())],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=their_complaints,
                env={**os.environ, **_ENVIRON, "PYTHONPATH": import_path()},
                start_new_session=True,  # the terminal's interrupt is for the app
            )
        except BaseException:
            ours.close()
            os.close(complaints)
            raise
        finally:
            theirs.close()
            for fd in (their_complaints, tensor_fd, spec_fd):
                if fd >= 0:
                    os.close(fd)
        self._line, self._complaints, self._owner = ours, complaints, os.getpid()
        self._fd = ours.fileno()
        self._timeout_s = 0.0
        ours.settimeout(0.0)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def out(self) -> bool:
        """Whether a call is out that has not been answered."""
        return self._asked != self._answered

    @property
    def calls(self) -> int:
        """Calls asked so far."""
        return self._asked

    def ready(self, timeout_s: float, stopped: Callable[[], bool]) -> str:
        """Wait until the model is loaded; what the worker runs on.

        Raises:
            TimeoutError: It takes longer, or ``stopped`` says that nobody waits any more.
            WorkerGoneError: The worker ended.
            WorkerFailedError: The engine refused; the device or its library is not there.
        """
        until = self._timer() + timeout_s
        while not self._poll.poll(_SLICE_S * 1000):
            if stopped() or self._timer() >= until:
                raise TimeoutError(f"not ready after {timeout_s:g} s")
        kind, _, text = self._receive()
        if kind == FAILED:
            raise WorkerFailedError(text)
        if kind != READY:
            raise WorkerGoneError(f"said {kind!r} before it was ready")
        self.runs_on = str(json.loads(text).get("runs_on", ""))
        return self.runs_on

    def ask(self, inputs: list[Array], *, canary: int = -1) -> None:
        """Hand over one call; nothing may be out.

        Raises:
            WorkerGoneError: The worker ended.
        """
        for view, array in zip(self._tensors.inputs, inputs, strict=True):
            np.copyto(view, array)
        self.canary = canary
        self._asked += 1
        self.asked_at = self._timer()
        HEAD.pack_into(self._order, 0, RUN, self._asked)
        try:
            os.write(self._fd, self._order)
        except OSError as exc:
            self._answered = self._asked
            raise WorkerGoneError from exc

    def answer(self, timeout_s: float) -> list[Array]:
        """The answer to the call that is out; arrays that belong to the caller.

        Raises:
            TimeoutError: It is not there in time, and the call stays out.
            WorkerGoneError: The worker ended.
            WorkerFailedError: The engine raised.
        """
        if timeout_s != self._timeout_s:
            self._line.settimeout(max(timeout_s, 0.0))
            self._timeout_s = timeout_s
        try:
            size = self._line.recv_into(self._buffer)
        except TimeoutError:
            raise
        except BlockingIOError as exc:
            raise TimeoutError from exc
        except OSError:
            size = 0
        kind, call, text = self._parse(size)
        if call != self._asked or kind not in (DONE, FAILED):
            raise WorkerGoneError(f"answered call {call} with {kind!r}, call {self._asked} is out")
        self._answered = call
        if kind == FAILED:
            raise WorkerFailedError(text)
        return [view.copy() for view in self._tensors.outputs]

    def _receive(self) -> tuple[bytes, int, str]:
        try:
            return self._parse(self._line.recv_into(self._buffer))
        except OSError:
            return self._parse(0)

    def _parse(self, size: int) -> tuple[bytes, int, str]:
        if size < HEAD.size:
            self._answered = self._asked
            raise WorkerGoneError
        kind, call = HEAD.unpack_from(self._buffer)
        text = self._buffer[HEAD.size : size].decode(errors="replace") if size > HEAD.size else ""
        return kind, call, text

    def arrived(self) -> bool:
        """Whether an answer lies there to be taken; never waits."""
        return bool(self._poll.poll(0))

    def listen(self) -> None:
        """Keep the end of what the worker complains about."""
        with suppress(OSError):
            while part := os.read(self._complaints, 65536):
                self._tail = (self._tail + part)[-_TAIL:]

    def epitaph(self) -> str:
        """How the worker ended, and the last it said; waits a moment for its end."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.05)
        code = self._process.returncode
        how = "still there" if code is None else f"exit {code}" if code >= 0 else f"signal {_name(-code)}"
        self.listen()
        words = self._tail.decode(errors="replace").strip().splitlines()
        return f"worker {self.pid}: {how}" + (f", last words: {words[-1][:160]}" if words else "")

    def kill(self) -> None:
        """``SIGKILL``, without waiting; harmless when it is dead, and in a forked copy of the app."""
        if self._owner == os.getpid():
            self._process.kill()

    def reap(self, timeout_s: float) -> bool:
        """Wait for the end of a killed worker; False while the kernel holds on to it (a call into a hung driver)."""
        if self._owner != os.getpid():
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def dismiss(self) -> None:
        """Tell a healthy worker to free its device and end."""
        if self._owner == os.getpid():
            with suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """Free the descriptors; twice is harmless."""
        with self.lock:
            if not self.closed:
                self.closed = True
                for close in (self._line.close, lambda: os.close(self._complaints)):
                    with suppress(OSError):  # somebody else's mistake closed it already
                        close()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
