"""``evolve``: a graft grown from captured samples, and the acceptance gate's word on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kasmina_edge.cli.output import console, emit
from kasmina_trainer.cli import captured as captures
from kasmina_trainer.cli import measuring
from kasmina_trainer.cli.options import GROWN_FILE, HOST_FILE, Captured, Device, Json, Out, Seed, Simulated
from kasmina_trainer.cli.progress import progress
from kasmina_trainer.datasets import digits

if TYPE_CHECKING:
    from kasmina_trainer.evolve import Event
    from kasmina_trainer.training import Progress

RUN_FOLDER = "growth.run"


def evolve(
    captured: Captured = None,
    simulated: Simulated = None,
    out: Out = Path("build"),
    host: Annotated[
        Path | None, typer.Option("--host", help="Host checkpoint; OUT/host.checkpoint when left out.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Result; OUT/grown.checkpoint when left out.")] = None,
    blueprint: Annotated[
        str,
        typer.Option(
            "--blueprint",
            help="A name that `kasmina-trainer blueprints` lists; a recipe (light, strong, filters, filters-and-norms, "
            "depthwise-and-norms), which brings its own sites; or auto: a race of all that fit.",
        ),
    ] = "depthwise",
    sites: Annotated[
        str | None, typer.Option("--sites", help="Comma-separated; the first two when left out, all with auto.")
    ] = None,
    target_only: Annotated[
        bool, typer.Option("--target-only", help="Leave clean data out of the mix: this is how a graft does harm.")
    ] = False,
    rival: Annotated[bool, typer.Option(help="Train the scale/BN retune and full fine-tuning beside it.")] = True,
    intensity: Annotated[
        list[str] | None,
        typer.Option(
            "--intensity",
            metavar="X|NAME=X",
            help="Blend factor, 0 to 1, of all grafts or of a blueprint; again for another. NAME.learning_rate=X and "
            "NAME.width=X scale the rate and the width.",
        ),
    ] = None,
    intensities: Annotated[
        Path | None, typer.Option("--intensities", help="Folder of intensity files, one a blueprint.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Most time for training.")] = 5.0,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            help="90s, 5m, 1h of training (instead of --minutes); 200k, 2M MACs a frame; 500p, 10% of parameters.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps; fewer is quicker.")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Hardware target; what the int8 files cost there is estimated.")
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option("--max-ms", min=0, help="Most for one inference on the profile.")
    ] = None,
    max_memory_kb: Annotated[
        float | None, typer.Option("--max-memory-kb", min=0, help="Most for activations and weights, 1000 bytes each.")
    ] = None,
    max_energy_uj: Annotated[
        float | None, typer.Option("--max-energy-uj", min=0, help="Most for one inference on the profile.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a growth that was interrupted, to the same bytes.")
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard scalars of every step.")
    ] = None,
    telemetry: Annotated[
        Path | None,
        typer.Option("--telemetry", help="File to which what the seed sites measure is added, one JSON line a record."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the grown network: a .svg or .html file.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Grow a graft from captured samples, judge it on held-out ones, and write OUT/grown.checkpoint.

    Exit code 1 when the acceptance gate refuses it; the file is written all the same, with the reasons inside.
    """
    import torch

    from kasmina_edge.errors import InputError
    from kasmina_trainer.checkpoints import load_checkpoint, save_network
    from kasmina_trainer.evolve import (
        GRAFT_SETTINGS,
        RECIPES,
        default_settings,
        parse_budget,
        parse_intensities,
        sites_for,
    )
    from kasmina_trainer.evolve import evolve as grow
    from kasmina_trainer.evolve.journal import discard_run
    from kasmina_trainer.seeds import attach_seeds
    from kasmina_trainer.training import Minutes

    limits = measuring.limits_of(profile, latency_ms=max_ms, memory_kb=max_memory_kb, energy_uj=max_energy_uj)
    if picture is not None and picture.suffix not in (".svg", ".html"):
        raise InputError(f"--picture {picture}: expected a name that ends in .svg or .html")
    source = load_checkpoint(host or out / HOST_FILE)
    parts = digits.split_digits(int(source.metadata.get("seed", seed)))
    target = captures.target(captured, simulated, parts.camera, seed)
    size = sum(p.numel() for p in source.network.body.parameters())
    budgets = [parse_budget(text, size) for text in budget or ()]
    if not any(isinstance(each, Minutes) for each in budgets):
        budgets.append(Minutes(minutes))
    run = out / RUN_FOLDER
    seeds = source.network
    if blueprint in RECIPES and not seeds.grafts:  # a network that has grown is refused, whatever is asked for
        example = torch.from_numpy(parts.probes.x[:1].copy())
        seeds = attach_seeds(source.host(), sites_for(blueprint, source.host(), example), example=example)
    plain = default_settings(blueprint) if blueprint != "auto" else GRAFT_SETTINGS
    with _resumable(quiet=as_json), _watched(f"Growing {blueprint}", quiet=as_json) as (on_step, on_event):
        grown = grow(
            seeds,
            train=parts.host.samples,
            target=target,
            holdout_clean=parts.probes.samples,
            blueprint=blueprint,
            sites=tuple(s.strip() for s in sites.split(",")) if sites else None,
            budget=budgets,
            limits=limits,
            measure=measuring.int8_files(parts) if profile is not None else None,
            seed=seed,
            intensity=parse_intensities(intensity or (), intensities),
            target_only=target_only,
            rival=rival,
            settings=replace(plain, steps=steps) if steps is not None else None,
            profile=profile,
            device=device,
            folder=run,
            resume=resume,
            replace_run=not resume,
            tensorboard=tensorboard,
            telemetry=telemetry,
            on_step=on_step,
            on_event=on_event,
        )
    path = save or out / GROWN_FILE
    note = {
        **source.metadata,
        "blueprint": blueprint if blueprint != "auto" else grown.blueprint,
        "target_only": target_only,
        "captured": len(target[1]),
        "growth_seed": seed,
    }
    save_network(path, grown.network, grafts=grown.grafts, acceptance=grown.acceptance, metadata=note)
    discard_run(run)
    if picture is not None:
        grown.save_picture(picture)
    report = grown.report()
    drawn = {"picture": str(picture)} if picture is not None else {}
    emit({**report.as_dict(), "file": str(path), "accepted": grown.acceptance.accepted, **drawn}, as_json=as_json)
    if not as_json:
        console().print(report)
        console().print(f"written to {path}" + (f", drawn in {picture}" if picture is not None else ""))
    if not grown.acceptance.accepted:
        raise typer.Exit(1)


@contextmanager
def _resumable(*, quiet: bool) -> Iterator[None]:
    """What was trained until Ctrl-C is kept, and whoever pressed it is told."""
    try:
        yield
    except KeyboardInterrupt:
        if not quiet:
            console(stderr=True).print("interrupted; the same call with --resume goes on")
        raise


@contextmanager
def _watched(text: str, *, quiet: bool) -> Iterator[tuple[Progress, Callable[[Event], None] | None]]:
    """A live table on a terminal; a plain bar, or nothing, elsewhere."""
    err = console(stderr=True)
    if quiet or not err.is_interactive:
        with progress(text, quiet=quiet) as on_step:
            yield on_step, None
        return
    from rich.live import Live

    from kasmina_trainer.evolve.live import LiveTable

    table = LiveTable(text)
    with Live(table, console=err, transient=True, refresh_per_second=4):
        yield table.step, table
