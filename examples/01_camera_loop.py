"""A camera loop that goes on while its network is replaced underneath: python 01_camera_loop.py DATA [SECONDS] [FPS]

Updates are the agent's business (`kasmina-edge run`); this process only opens the data folder and infers.
"""

import sys
import time

import numpy as np

from kasmina_edge import Runtime


def camera(shape, seconds, fps):
    """Frames of a simulated sensor in 0..1, each at its time; put yours here."""
    rng, began = np.random.default_rng(0), time.monotonic()
    for number in range(int(seconds * fps)):
        time.sleep(max(0.0, began + number / fps - time.monotonic()))
        yield rng.random(shape, dtype=np.float32)


def main(data, seconds=10.0, fps=100.0):
    """Answer every frame; say which bundle answers when that changes."""
    serving, answered, slowest_us = None, 0, 0.0
    with Runtime.open(data) as runtime:
        for frame in camera(runtime.manifest.inputs[0].shape, float(seconds), float(fps)):
            result = runtime.infer(frame)
            if result.bundle != serving:
                serving = result.bundle
                print(f"{serving} answers, on {runtime.runs_on}, from frame {answered}", flush=True)
            if result.score is not None and result.score < 0.6:
                runtime.capture(frame)  # kept, sealed to the controller's key, only if the change plan allows it
            answered, slowest_us = answered + 1, max(slowest_us, result.latency_us)
    print(f"{answered} frames answered, {runtime.swaps} swaps, slowest {slowest_us / 1000:.1f} ms", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python 01_camera_loop.py DATA [SECONDS] [FPS]")
    main(*sys.argv[1:])
