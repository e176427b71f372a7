"""The real-time half of benchmarks/domain_ecg.py, in a process that never sees PyTorch.

    python -m benchmarks._ecg_realtime measure DATA WINDOWS.npy UPDATE.kasmina COUNT     # prints JSON
    python -m benchmarks._ecg_realtime install DATA BUNDLE.kasmina [WAIT]                # as an agent does

Raw windows in mV arrive by the clock; conditioning, quantizing and inferring are all inside the answer. The runtime
follows a data folder and keeps its telemetry, as on a device. The update is installed by another process, durably,
which was there before, as an agent is (WAIT: for a line), and has everybody's priority.
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
from kasmina_trainer.datasets.medical_simulator.realtime import (
    RealTimeReport,
    awake,
    bare,
    busy,
    first_in_line,
    validate,
)
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
    """Alone, beside as many busy processes as there are cores, and while an update is installed.

    As a monitor runs, first in line and on cores that do not sleep, where the machine allows it; alone and beside the
    load once more as every process runs. Twice an answerer that only counts tells what the machine itself takes.
    """
    raw = np.load(windows)  # (N, 3, 1280), mV
    cores = len(os.sched_getaffinity(0))
    with Runtime.open(data, profile="x86-cpu") as runtime:

        def answer(window: Any) -> None:
            if runtime.infer(np.ascontiguousarray(conditioned(window).transpose(1, 2, 0))).label_index is None:
                raise ValueError("no answer")

        def run(count: int, **options: Any) -> RealTimeReport:
            return validate(answer, raw, count=count, period_s=PERIOD_S, **options)

        def run_bare() -> RealTimeReport:
            return validate(bare(), raw, count=count, period_s=PERIOD_S)

        run(WARM_UP)
        command = [sys.executable, "-m", "benchmarks._ecg_realtime", "install", str(data), str(update), "when told"]
        before = runtime.bundle
        with subprocess.Popen(command, stdin=subprocess.PIPE) as agent:

            def told() -> None:
                agent.communicate(b"now\n")
                if agent.returncode:
                    raise RuntimeError(f"the update's installer ended with {agent.returncode}")

            with busy(cores):
                found = {"equal": run(count)}
            found |= {"plain": run(count), "plain machine": run_bare()}
            with busy(cores), first_in_line() as first:
                found["loaded"] = run(count)
            with first_in_line(), awake() as up:
                found["machine"] = run_bare()
                found["alone"] = run(count)
                found["updated"] = run(count, meanwhile={"install": told})
        runtime.refresh()
        swapped = runtime.bundle != before
    return {
        "swapped": swapped,
        "cores": cores,
        "first": first,
        "awake": up,
        **{name: asdict(report) for name, report in found.items()},
    }


if __name__ == "__main__":
    if sys.argv[1] == "install":
        if sys.argv[4:]:
            sys.stdin.readline()
        install(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        print(json.dumps(measure(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))))
