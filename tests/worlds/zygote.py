"""Real processes that live a life of `worlds.lives`, started fast and watched by strace.

One process imports everything once and forks a child for every life, so that a process costs some 50 ms. The child
waits until strace has attached, then lives, telling each word on a pipe. strace counts system calls by name, from the
attach on, and kills, refuses or stops at the one that is asked for.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CALLS = (
    "write", "writev", "pwrite64", "pwritev", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink",
    "unlinkat", "mkdir", "mkdirat", "rmdir", "ftruncate", "truncate", "fallocate", "link", "linkat", "openat",
)  # fmt: skip
"""Every system call by which one of these lives changes a disk; `openat` counts where it creates a file."""
DEADLINE_S = 60.0
_CALL = re.compile(r"^(?:\[pid +(\d+)\] )?([a-z0-9_]+)\((.*)$")
_PR_SET_PTRACER = 0x59616D61


class NoStraceError(RuntimeError):
    """strace is missing or may not attach here."""


@dataclass(frozen=True)
class Call:
    """One system call of a life that could change the data folder: the ``number``-th of its ``name``, from 1."""

    name: str
    number: int
    text: str


@dataclass
class End:
    """How a child ended: its words, its status as `subprocess` has it, and its own calls as strace printed them."""

    told: list[str]
    status: int
    calls: list[Call]


class Zygote:
    """Forks children for lives; a context manager."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
        environment |= {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # its writes would be counted
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worlds.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._buffer = b""
        assert self._read_line() == "ready"

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._process.stdout.close()

    def live(
        self,
        folder: Path,
        life: str,
        *,
        inject: tuple[str, ...] = (),
        calls: tuple[str, ...] = CALLS,
        disk: str = "Disk",
        at_stop: Callable[[Call, list[str]], None] | None = None,
    ) -> End:
        """One child lives ``life`` on ``folder`` under strace.

        Args:
            inject: strace's ``inject=`` expressions, e.g. ``fsync:signal=KILL:when=3``.
            calls: What strace looks at.
            disk: Name of a class of `worlds.disks` (or ``Disk``) that the child writes through.
            at_stop: Called with the call and the words told so far whenever the child was stopped by SIGSTOP.

        Raises:
            NoStraceError: strace is missing or may not attach.
        """
        if shutil.which("strace") is None:
            raise NoStraceError("strace is not installed")
        self._send(json.dumps({"folder": str(folder), "life": life, "disk": disk}))
        pid = int(self._read_line().removeprefix("pid "))
        command = ["strace", "-f", "-y", "-s", "0", "-p", str(pid), "-e", f"trace={','.join(calls)}"]
        command += [word for one in inject for word in ("-e", f"inject={one}")]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
        try:
            return self._watch(tracer, pid, at_stop)
        finally:
            tracer.kill()
            tracer.wait()
            assert tracer.stderr is not None
            tracer.stderr.close()

    def _watch(self, tracer: subprocess.Popen[str], pid: int, at_stop: Callable[[Call, list[str]], None] | None) -> End:
        assert tracer.stderr is not None
        first = tracer.stderr.readline()  # the wait for this line is what makes the counting exact
        if "attached" not in first:
            self._send("go")
            self._words([])
            raise NoStraceError(f"strace cannot attach here: {first.strip()}")
        self._send("go")
        calls: list[Call] = []
        told: list[str] = []
        counts: dict[str, int] = {}
        for line in tracer.stderr:
            call = _CALL.match(line)
            if call is not None and "resumed>" not in line and call[1] in (None, str(pid)):
                counts[call[2]] = counts.get(call[2], 0) + 1
                calls.append(Call(call[2], counts[call[2]], call[3].rstrip("\n")))
            elif "stopped by SIGSTOP" in line and at_stop is not None:
                while select.select([self._process.stdout], [], [], 0)[0]:
                    self._fill()
                *lines, self._buffer = self._buffer.split(b"\n")
                told += [text.decode().removeprefix("told ") for text in lines]
                at_stop(calls[-1], list(told))
                os.kill(pid, signal.SIGCONT)
        status = self._words(told)
        return End(told, status, calls)

    def _words(self, told: list[str]) -> int:
        """The rest of what a child tells, until the zygote tells its end."""
        while True:
            line = self._read_line()
            if line.startswith("end "):
                return int(line.removeprefix("end "))
            told.append(line.removeprefix("told "))

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _fill(self) -> None:
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), 65536)
        if not data:
            raise RuntimeError("the process that forks the lives has ended; its own words are above")
        self._buffer += data

    def _read_line(self) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"nothing was told for {DEADLINE_S:g} s")
            self._fill()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


def changing(calls: list[Call], folder: Path) -> list[Call]:
    """Those of a life's calls that could change something below ``folder``.

    The others only tell a word on a pipe or open a file to read; strace counts them all the same.
    """
    return [c for c in calls if str(folder) in c.text and (c.name != "openat" or "O_CREAT" in c.text)]


def _raw_line() -> str:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return ""
        line += byte
    return line.decode().strip()


def _say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def _child(order: dict[str, str]) -> int:
    """Live; 0 when every word was told, 3 when something was refused with one of our errors, 70 for anything else."""
    from worlds import disks, lives

    from kasmina_edge.errors import KasminaError
    from kasmina_edge.storage import Disk, use_disk

    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1))  # Yama: a tracer that is no ancestor
    _say(f"pid {os.getpid()}")
    _raw_line()
    disk = Disk() if order["disk"] == "Disk" else getattr(disks, order["disk"])()
    try:
        with use_disk(disk):
            lives.run(getattr(lives, order["life"])(lives.Device(Path(order["folder"]))), lambda w: _say(f"told {w}"))
    except KasminaError as exc:
        _say(f"told refused: {exc.message}")
        return 3
    return 0


def main() -> None:
    """Fork a child for every line on stdin, and tell how it ended."""
    import tempfile

    from worlds import lives

    with tempfile.TemporaryDirectory() as folder:  # what is loaded on first use is loaded now
        lives.with_host(Path(folder))
        lives.run(lives.update(lives.Device(Path(folder))), lambda word: None)
    _say("ready")
    while line := _raw_line():
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = _child(json.loads(line))
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        _say(f"end {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
