"""What the graft is compared with, a retune and a harmful graft, grown in a process of their own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kasmina_edge.bundle import pack, read_file
from kasmina_edge.contracts.arrays import unpack_arrays
from kasmina_edge.storage import write_durable
from kasmina_trainer.demo.growing import Grower

RIVALS = ("retune", "harmful")


def unsigned_path(out: Path, kind: str) -> Path:
    """Where the process leaves an unsigned bundle."""
    return out / "compared" / f"{kind}.unsigned"


def main() -> int:
    """Grow and export both from the same captured inputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the demo's output folder")
    parser.add_argument("--host", type=Path, required=True, help="the host's bundle")
    parser.add_argument("--captured", type=Path, required=True, help="arrays x and y")
    parser.add_argument("--batches", required=True, help="capture batches, separated by commas")
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    captured = unpack_arrays(options.captured.read_bytes(), where=str(options.captured))
    grower = Grower(options.out, seed=options.seed, progress=lambda *_: None)
    grower.resume(read_file(options.host))
    (options.out / "compared").mkdir(exist_ok=True)
    for kind in RIVALS:
        bundle = grower.release(kind, captured["x"], captured["y"], options.batches.split(","))
        write_durable(unsigned_path(options.out, kind), pack(bundle))
    return 0


if __name__ == "__main__":
    sys.exit(main())
