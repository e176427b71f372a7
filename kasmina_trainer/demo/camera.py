"""A device app with a simulated camera in front of it: real digits through a lens, the embedding API behind it.

It is what a product's own program would be: it opens the data folder, infers frame by frame, sends known scenes as
check frames, and offers a random share of its inputs for capture. It knows nothing of updates. The lens is switched
from outside by writing ``sharp`` or the name of a corruption into a file; what a person would say of a captured frame
is appended to the annotator's CSV.
"""

from __future__ import annotations

import argparse
import csv
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kasmina_edge.contracts.arrays import unpack_arrays
from kasmina_edge.errors import BundleError, InputError, KasminaError
from kasmina_edge.runtime import Runtime
from kasmina_edge.telemetry.capture import frame_digest
from kasmina_trainer.datasets.corruptions import NHWC_AXES, corrupt

CHECK_EVERY = 4
CAPTURE_SHARE = 0.9  # at random: out of its domain a model is confidently wrong, low scores alone would miss that
SENSOR_NOISE = 0.01


def main() -> int:
    """Run until SIGTERM or Ctrl-C; exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the device's data folder")
    parser.add_argument("--scenes", type=Path, required=True, help="arrays scenes_x, scenes_y, check_x, check_y (NHWC)")
    parser.add_argument(
        "--lens", type=Path, required=True, help="file that names the lens: sharp, blur, noise, contrast"
    )
    parser.add_argument("--annotations", type=Path, required=True, help="CSV digest,label that is appended to")
    parser.add_argument("--frames-per-second", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    scenes = unpack_arrays(options.scenes.read_bytes(), where=str(options.scenes))
    runtime = wait_for_bundle(options.data, stop)
    if runtime is None:
        return 0
    with runtime:
        film(runtime, scenes, options, stop)
    return 0


def wait_for_bundle(data: Path, stop: threading.Event) -> Runtime | None:
    """The runtime, as soon as something is deployed; None when stopped before."""
    while not stop.is_set():
        try:
            return Runtime.open(data)
        except (InputError, BundleError):
            stop.wait(0.1)
    return None


def film(runtime: Runtime, scenes: dict[str, np.ndarray], options: argparse.Namespace, stop: threading.Event) -> None:
    """Show scenes at a steady rate until stopped."""
    rng = np.random.default_rng(options.seed)
    period = 1.0 / options.frames_per_second
    order = {kind: in_turn(len(scenes[f"{kind}_y"]), rng) for kind in ("check", "scenes")}
    due = time.monotonic()
    count = 0
    with options.annotations.open("a", newline="") as stream:
        annotator = csv.writer(stream)
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + period, time.monotonic() - 5 * period)
            is_check = count % CHECK_EVERY == 0
            kind = "check" if is_check else "scenes"
            row = next(order[kind])
            frame = through_lens(scenes[f"{kind}_x"][row], lens(options.lens), rng)
            label = int(scenes[f"{kind}_y"][row])
            try:
                if is_check:
                    runtime.check(frame, label)
                else:
                    runtime.infer(frame)
                    if rng.random() < CAPTURE_SHARE and runtime.capture(frame):
                        annotator.writerow((frame_digest(frame), label))
                        stream.flush()
            except KasminaError as exc:
                print(f"camera: {exc.message}", file=sys.stderr, flush=True)
            count += 1


def in_turn(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Row numbers for ever: all of them in a shuffled order, then again in another one."""
    while True:
        yield from (int(row) for row in rng.permutation(count))


def lens(path: Path) -> str:
    """What stands in the lens file; ``sharp`` when there is none."""
    return path.read_text().strip() if path.is_file() else "sharp"


def through_lens(scene: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """One frame: the scene, the lens, a little sensor noise.  # (16, 16, 1) float32 in [0, 1]"""
    frame = scene if kind == "sharp" else corrupt(scene, kind, seed=int(rng.integers(2**31)), axes=NHWC_AXES)
    grain = rng.normal(0.0, SENSOR_NOISE, frame.shape)
    return np.clip(frame + grain, 0.0, 1.0).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
