"""Real processes that end with the demo: started with their output in a file, ended by id, last started first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kasmina_edge.errors import KasminaError

END_TIMEOUT_S = 8.0


class Processes:
    """Context manager over child processes; leaving it ends them all, also on Ctrl-C.

    Args:
        logs: Folder for one ``NAME.log`` each.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._finite: set[str] = set()
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, arguments: Sequence[str], *, finite: bool = False) -> int:
        """Start ``python -m ...`` and return its process id; a ``finite`` one may end by itself with exit code 0."""
        if finite:
            self._finite.add(name)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends each in order
            )
        self._running[name] = process
        return process.pid

    def require_alive(self) -> None:
        """Refuse to go on when one ended by itself.

        Raises:
            KasminaError: Names the process, its exit code, and the end of its log.
        """
        for name, process in self._running.items():
            code = process.poll()
            if code is not None and not (code == 0 and name in self._finite):
                tail = (self._logs / f"{name}.log").read_text(errors="replace")[-400:].strip()
                raise KasminaError(f"{name} ended with exit code {code}: {tail}", f"See {self._logs / name}.log.")

    def end(self, name: str) -> None:
        """End one process by its id: SIGTERM, and SIGKILL when it does not listen."""
        process = self._running.pop(name)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in reversed(list(self._running.values())):
            if process.poll() is None:
                process.terminate()
        for name in reversed(list(self._running)):
            self.end(name)
