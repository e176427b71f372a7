"""The process that an accelerator runs in: ``python -m kasmina_edge.engines.accelerator.worker``, started by `link`.

It loads one model on one engine, answers one call at a time, and ends with its parent: by ``PR_SET_PDEATHSIG``
(prctl(2)) when the thread that started it dies, and by the end of the socket. It ignores the terminal's interrupt,
which is for the app. It never writes on standard output.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from kasmina_edge.engines.accelerator.channel import (
    DONE,
    FAILED,
    HEAD,
    MAX_MESSAGE,
    READY,
    RUN,
    TensorMemory,
    WorkerSpec,
    message,
)
from kasmina_edge.engines.engine import Engine

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"
ORPHANED, LOST = 3, 4
"""Exit codes: the parent was gone before the worker was ready to notice; the supervisor said something else."""


def die_with(parent: int) -> bool:
    """Have the kernel kill this process with its parent; False when the parent is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def go_first() -> None:
    """Of app and worker, the worker is the one that the kernel ends when memory runs out; the app has a twin."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def load(spec: WorkerSpec) -> Engine:
    """The engine with its model, on the device."""
    module, _, name = spec.engine.partition(":")
    kind: type[Engine] = getattr(import_module(module), name)
    return kind(spec.model, spec.data, spec.profile)


def serve(line: socket.socket, engine: Engine, tensors: TensorMemory) -> int:
    """Answer calls until the other side closes; the exit code."""
    run = engine.hot_path()
    fd, inputs, outputs = line.fileno(), tensors.inputs, tensors.outputs
    buffer = bytearray(MAX_MESSAGE)
    while True:
        got = line.recv_into(buffer)
        if not got:
            return 0
        if got != HEAD.size:
            return LOST
        kind, call = HEAD.unpack_from(buffer)
        if kind != RUN:
            return LOST
        try:
            answers = run(inputs)
            for view, answer in zip(outputs, answers, strict=True):
                view[...] = answer
        except Exception as exc:
            reply = message(FAILED, call, _first_line(exc))
        else:
            reply = HEAD.pack(DONE, call)
        os.write(fd, reply)


def main(arguments: list[str]) -> int:
    """Load, say so, serve.

    Args:
        arguments: Descriptors of the socket, the order and the tensors, then the parent's process id.
    """
    line_fd, spec_fd, tensor_fd, parent = map(int, arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not die_with(parent):
        return ORPHANED
    go_first()
    with socket.socket(fileno=line_fd) as line:
        try:
            spec = WorkerSpec.read(spec_fd)
            tensors = TensorMemory(tensor_fd, spec.model)
            os.close(tensor_fd)
            engine = load(spec)
        except Exception as exc:
            line.send(message(FAILED, 0, _first_line(exc)))
            return 0
        gc.collect()
        gc.freeze()
        line.send(message(READY, 0, json.dumps({"runs_on": engine.runs_on})))
        try:
            return serve(line, engine, tensors)
        except OSError:  # the supervisor closed while an answer was on its way
            return 0
        finally:
            engine.close()


def _first_line(exc: Exception) -> str:
    text = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
