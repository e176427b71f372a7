"""``train``: a host from the digits data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kasmina_edge.cli.output import emit, rows_table
from kasmina_trainer.cli.options import HOST_FILE, Device, Json, Out, Seed
from kasmina_trainer.cli.progress import progress
from kasmina_trainer.datasets import digits


def train(
    out: Out = Path("build"),
    seed: Seed = 0,
    device: Device = "cpu",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps; fewer is quicker.")] = None,
    as_json: Json = False,
) -> None:
    """Train the digits host and write OUT/host.checkpoint."""
    from kasmina_trainer.checkpoints import save_host
    from kasmina_trainer.seeds import attach_seeds
    from kasmina_trainer.training import HOST_SETTINGS, accuracy, train_host

    parts = digits.split_digits(seed)
    settings = replace(HOST_SETTINGS, steps=steps) if steps is not None else HOST_SETTINGS
    with progress("Training the host", quiet=as_json) as on_step:
        host = train_host(parts.host, seed=seed, settings=settings, device=device, on_step=on_step)
    figures: dict[str, Any] = {
        "clean_accuracy": accuracy(host, parts.test.x, parts.test.y),
        "test_samples": len(parts.test),
        "parameters": sum(p.numel() for p in host.parameters()),
        "sites": list(attach_seeds(host).sites),
        "seed": seed,
    }
    path = out / HOST_FILE
    save_host(path, host, metadata={**figures, "sizes": {k: len(v) for k, v in parts.parts().items()}})
    table = rows_table(
        [
            ("host", f"{figures['parameters']} parameters, seed sites {', '.join(attach_seeds(host).sites)}"),
            ("clean", f"{100 * figures['clean_accuracy']:.1f} % of {len(parts.test)} digits it has never seen"),
            ("written", str(path)),
        ]
    )
    emit({**figures, "file": str(path)}, as_json=as_json, table=table)
