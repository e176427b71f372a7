"""A process that infers for long and says what it holds: ``python -m worlds.soaking DATA FRAMES --every N [--leak B]``.

One JSON object a line: frames done, anonymous memory, open files, threads. ``--leak`` keeps so many bytes an inference
on purpose, so that the tests' bounds can be seen to fail.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """What a process holds after so many inferences."""

    frames: int
    anonymous_bytes: int
    open_files: int
    threads: int


def look(frames: int) -> Sample:
    """proc(5): anonymous pages only, because files that are mapped come and go with the page cache."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    threads = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "Threads" in line
    )
    return Sample(frames, int(fields["Anonymous"].split()[0]) * 1024, len(os.listdir("/proc/self/fd")), threads)


def slope_bytes(samples: Sequence[Sample]) -> float:
    """Bytes an inference: the median of the slopes of all pairs, so that a single step of an allocator counts little.

    Sen (1968), "Estimates of the regression coefficient based on Kendall's tau", JASA 63(324).
    """
    slopes = sorted(
        (b.anonymous_bytes - a.anonymous_bytes) / (b.frames - a.frames)
        for i, a in enumerate(samples)
        for b in samples[i + 1 :]
    )
    middle = len(slopes) // 2
    return slopes[middle] if len(slopes) % 2 else (slopes[middle - 1] + slopes[middle]) / 2


def infer_for_long(data: Path, frames: int, every: int, leak_bytes: int) -> None:
    """Run the active bundle of a data folder, telemetry on."""
    from worlds.bundles import make_frames

    from kasmina_edge.runtime import Runtime

    kept: list[Any] = []
    pictures = list(make_frames(16))
    with Runtime.open(data) as runtime:
        for done in range(1, frames + 1):
            runtime.infer(pictures[done % 16])
            if leak_bytes:
                kept.append(bytes(leak_bytes))
            if done % every == 0:
                gc.collect()
                print(json.dumps(vars(look(done))), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("frames", type=int)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--leak", type=int, default=0)
    chosen = parser.parse_args()
    infer_for_long(chosen.data, chosen.frames, chosen.every, chosen.leak)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
