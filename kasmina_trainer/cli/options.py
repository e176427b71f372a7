"""Options that several verbs share, and the names of the files they leave for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HOST_FILE = "host.checkpoint"
GROWN_FILE = "grown.checkpoint"

Out = Annotated[Path, typer.Option("--out", help="Folder for what is made.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Chooses splits, first weights and order.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Captured = Annotated[
    Path | None,
    typer.Option(
        "--captured",
        help="Labelled captures: arrays x (N,16,16,1), or as your own network's app has frames, float32, and y int64.",
    ),
]
Simulated = Annotated[
    str | None,
    typer.Option("--simulated", help="Without captures: film digits through a bad lens (blur, noise, contrast)."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, or cuda where torch has it.")]
