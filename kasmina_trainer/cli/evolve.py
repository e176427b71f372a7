"""``evolve``: a graft grown from captured samples, and the acceptance gate's word on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kasmina_edge.cli.output import console, emit
from kasmina_trainer.cli import measuring, starting
from kasmina_trainer.cli.options import GROWN_FILE, HOST_FILE, Captured, Device, Json, Out, Seed, Simulated
from kasmina_trainer.cli.own_network import is_own

RUN_FOLDER = "growth.run"


def evolve(
    captured: Captured = None,
    simulated: Simulated = None,
    out: Out = Path("build"),
    host: Annotated[
        Path | None,
        typer.Option(
            "--host", help="Host checkpoint, or your own network (.pt2, .onnx); OUT/host.checkpoint when left out."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="For your own network: .npz of clean rows, x as the app has them and y."),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", help="The same, never trained on; a quarter of --data is set aside without it."),
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="For your own network: channels-last (the app's frames), or as-is.")
    ] = "channels-last",
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
    from kasmina_edge.errors import InputError
    from kasmina_trainer.checkpoints import save_network
    from kasmina_trainer.evolve import GRAFT_SETTINGS, default_settings, parse_budget, parse_intensities
    from kasmina_trainer.evolve import evolve as grow
    from kasmina_trainer.evolve.journal import discard_run
    from kasmina_trainer.training import Minutes

    limits = measuring.limits_of(profile, latency_ms=max_ms, memory_kb=max_memory_kb, energy_uj=max_energy_uj)
    if picture is not None and picture.suffix not in (".svg", ".html"):
        raise InputError(f"--picture {picture}: expected a name that ends in .svg or .html")
    places = tuple(s.strip() for s in sites.split(",")) if sites else None
    if host is not None and is_own(host):
        start = starting.from_own(host, data, held_out, captured, simulated, layout, places)
    elif data is not None or held_out is not None:
        raise InputError("--data and --held-out belong to a network of your own", "Name it: --host net.pt2.")
    else:
        start = starting.from_digits(host or out / HOST_FILE, captured, simulated, seed)
    budgets = [parse_budget(text, start.parameters) for text in budget or ()]
    if not any(isinstance(each, Minutes) for each in budgets):
        budgets.append(Minutes(minutes))
    run = out / RUN_FOLDER
    plain = default_settings(blueprint) if blueprint != "auto" else GRAFT_SETTINGS
    with _resumable(quiet=as_json):
        grown = grow(
            start.seeded_for(blueprint),
            train=start.train,
            target=start.target,
            holdout_clean=start.clean,
            blueprint=blueprint,
            sites=places,
            budget=budgets,
            limits=limits,
            measure=start.measure() if profile is not None else None,
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
            progress=not as_json,
        )
    path = save or out / GROWN_FILE
    note = {
        **start.metadata,
        "blueprint": blueprint if blueprint != "auto" else grown.blueprint,
        "target_only": target_only,
        "captured": len(start.target[1]),
        "growth_seed": seed,
    }
    save_network(
        path, grown.network, grafts=grown.grafts, acceptance=grown.acceptance, metadata=note, foreign=start.foreign
    )
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
