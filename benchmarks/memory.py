"""What an idle agent holds: PSS of a real agent process that is connected to a broker and has loaded no engine.

PSS is ``/proc/PID/smaps_rollup`` (proc(5)): private pages, and a fair share of each page that others map too. It is
smaller where another Python process runs from the same files, as an app on the same device does, and this benchmark's
own process is such a one; resident memory stands beside it, which counts every shared page whole and so bounds PSS on
a machine where nothing is shared.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kasmina_edge.fleet.folder import FleetFolder
from kasmina_edge.service.health_socket import SOCKET_NAME, ask
from kasmina_edge.transport.broker import start_mosquitto

TARGET_MB = 60.0
SETTLE_S = 3.0
READY_WITHIN_S = 30.0
ENGINES = ("ai_edge_litert", "onnxruntime")


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """PSS against its target; resident memory and what the imports alone hold stand beside it."""
    del quick
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as name:
        folder = Path(name)
        with start_mosquitto(0, folder / "broker") as broker:
            office = FleetFolder.init(
                folder / "fleet", offline_keys=folder / "offline", address=broker.address, clock=time.time
            )
            office.enroll("cam-1", folder / "cam-1")
            agent = measure_agent(folder / "cam-1")
    how = "smaps_rollup of `kasmina-edge run`, connected to mosquitto on loopback, 3 s after its first check"
    return [
        _row("agent memory before an engine is loaded, PSS", TARGET_MB, agent["Pss"], how),
        _row("the same, resident (nothing shared)", None, agent["Rss"], how),
        _row("the same, its own pages", None, agent["Private_Dirty"] + agent["Private_Clean"], how),
    ]


def measure_agent(data: Path) -> dict[str, float]:
    """Fields of smaps_rollup of an agent over an enrolled folder, in units of 10^6 bytes.

    Raises:
        RuntimeError: The agent did not come up, or has loaded an engine.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "kasmina_edge", "run", "--data", str(data)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        _wait(lambda: (ask(data / SOCKET_NAME) or {}).get("last_check_age_s") is not None, process)
        time.sleep(SETTLE_S)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        loaded = [name for name in ENGINES if f"/{name}/" in maps]
        if loaded:
            raise RuntimeError(f"an idle agent has loaded {', '.join(loaded)}")
        return read_rollup(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def read_rollup(pid: int) -> dict[str, float]:
    """``/proc/PID/smaps_rollup`` in units of 10^6 bytes."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        fields[name.rstrip(":")] = int(value) * 1024 / 1e6
    return fields


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the agent did not come up within {READY_WITHIN_S:g} s (exit {process.poll()})")
        time.sleep(0.05)


def _row(name: str, target: float | None, measured: float, how: str) -> dict[str, Any]:
    return {
        "name": name,
        "target": target,
        "measured": round(measured, 1),
        "unit": "MB",
        "ok": target is None or measured <= target,
        "how": how,
    }
