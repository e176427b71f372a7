"""The real-time half of benchmarks/domain_ecg.py, in a process that never sees PyTorch.

    python -m benchmarks._ecg_realtime measure DATA WINDOWS.npy UPDATE.kasmina COUNT     # prints JSON
    python -m benchmarks._ecg_realtime install DATA BUNDLE.kasmina                       # as an agent does

Raw windows in mV arrive by the clock; conditioning, quantizing and inferring are all inside the answer. The runtime
follows a data folder and keeps its telemetry, as on a device. The update is installed by another process, durably.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kasmina_edge.bundle import read_file
from kasmina_edge.runtime import Runtime
from kasmina_edge.slots import SlotStore
from kasmina_trainer.datasets.medical_simulator.realtime import RealTimeReport, busy, validate
from kasmina_trainer.datasets.medical_simulator.windows import conditioned

PERIOD_S = 0.010
WARM_UP = 200


def install(data: Path, file: Path) -> None:
    """Install and commit a bundle, as an agent does."""
    store = SlotStore(data)
    store.begin_trial(store.install(read_file(file), engine="litert"))
    store.go_live()
    store.confirm()


def measure(data: Path, windows: Path, update: Path, count: int) -> dict[str, Any]:
    """Three runs: alone, beside as many busy processes as there are cores, and while an update is installed."""
    raw = np.load(windows)  # (N, 3, 1280), mV
    cores = len(os.sched_getaffinity(0))
    with Runtime.open(data, profile="x86-cpu") as runtime:

        def answer(window: Any) -> None:
            if runtime.infer(conditioned(window).transpose(1, 2, 0)).label_index is None:
                raise ValueError("no answer")

        def run(count: int, **options: Any) -> RealTimeReport:
            return validate(answer, raw, count=count, period_s=PERIOD_S, **options)

        run(WARM_UP)
        found = {"alone": run(count)}
        with busy(cores):
            found["loaded"] = run(count)
        before = runtime.bundle
        command = [sys.executable, "-m", "benchmarks._ecg_realtime", "install", str(data), str(update)]
        found["updated"] = run(count, meanwhile={"install": lambda: subprocess.run(command, check=True)})
        runtime.refresh()
        swapped = runtime.bundle != before
    return {"swapped": swapped, "cores": cores, **{name: asdict(report) for name, report in found.items()}}


if __name__ == "__main__":
    if sys.argv[1] == "install":
        install(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        print(json.dumps(measure(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))))
