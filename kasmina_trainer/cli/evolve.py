"""``evolve``: a graft grown from captured samples, and the acceptance gate's word on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kasmina_edge.cli.output import console, emit
from kasmina_trainer.cli import captured as captures
from kasmina_trainer.cli.options import GROWN_FILE, HOST_FILE, Captured, Device, Json, Out, Seed, Simulated
from kasmina_trainer.cli.progress import progress
from kasmina_trainer.datasets import digits


def evolve(
    captured: Captured = None,
    simulated: Simulated = None,
    out: Out = Path("build"),
    host: Annotated[
        Path | None, typer.Option("--host", help="Host checkpoint; OUT/host.checkpoint when left out.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Result; OUT/grown.checkpoint when left out.")] = None,
    blueprint: Annotated[str, typer.Option("--blueprint", help="depthwise, no-op or scale-bn-retune.")] = "depthwise",
    sites: Annotated[str | None, typer.Option("--sites", help="Comma-separated; the first two when left out.")] = None,
    target_only: Annotated[
        bool, typer.Option("--target-only", help="Leave clean data out of the mix: this is how a graft does harm.")
    ] = False,
    rival: Annotated[bool, typer.Option(help="Train the scale/BN retune beside it.")] = True,
    intensity: Annotated[float, typer.Option("--intensity", help="Blend factor, 0 to 1.")] = 1.0,
    minutes: Annotated[float, typer.Option("--minutes", help="Most time for training.")] = 5.0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps; fewer is quicker.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="Hardware target.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Grow a graft from captured samples, judge it on held-out ones, and write OUT/grown.checkpoint.

    Exit code 1 when the acceptance gate refuses it; the file is written all the same, with the reasons inside.
    """
    from kasmina_trainer.checkpoints import load_checkpoint, save_network
    from kasmina_trainer.evolve import default_settings
    from kasmina_trainer.evolve import evolve as grow
    from kasmina_trainer.training import Minutes

    source = load_checkpoint(host or out / HOST_FILE)
    parts = digits.split_digits(int(source.metadata.get("seed", seed)))
    target = captures.target(captured, simulated, parts.camera, seed)
    with progress(f"Growing {blueprint}", quiet=as_json) as on_step:
        grown = grow(
            source.network,
            train=parts.host.samples,
            target=target,
            holdout_clean=parts.probes.samples,
            blueprint=blueprint,
            sites=tuple(s.strip() for s in sites.split(",")) if sites else None,
            budget=Minutes(minutes),
            seed=seed,
            intensity=intensity,
            target_only=target_only,
            rival=rival,
            settings=replace(default_settings(blueprint), steps=steps) if steps is not None else None,
            profile=profile,
            device=device,
            on_step=on_step,
        )
    path = save or out / GROWN_FILE
    note = {
        **source.metadata,
        "blueprint": blueprint,
        "target_only": target_only,
        "captured": len(target[1]),
        "growth_seed": seed,
    }
    save_network(path, grown.network, grafts=grown.grafts, acceptance=grown.acceptance, metadata=note)
    report = grown.report()
    emit({**report.as_dict(), "file": str(path), "accepted": grown.acceptance.accepted}, as_json=as_json)
    if not as_json:
        console().print(report)
        console().print(f"written to {path}")
    if not grown.acceptance.accepted:
        raise typer.Exit(1)
