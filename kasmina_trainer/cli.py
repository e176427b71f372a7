"""``kasmina-trainer``: train a host, grow it from captured samples, export it, and show the whole loop.

Torch is imported inside the verbs that need it; ``--help`` never waits for it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from kasmina_edge.cli.output import EXIT_CODES, console, emit, kilobytes, rows_table, run_app
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import digits
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.datasets.scenes import set_aside

if TYPE_CHECKING:
    from kasmina_edge.bundle import Bundle
    from kasmina_trainer.checkpoints import Checkpoint
    from kasmina_trainer.training import Progress

HOST_FILE = "host.checkpoint"
GROWN_FILE = "grown.checkpoint"
SIMULATED_SAMPLES = 300

app = typer.Typer(
    name="kasmina-trainer",
    help="Train a host, grow it where it is weak, and export what a device can read.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Out = Annotated[Path, typer.Option("--out", help="Folder for what is made.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Chooses splits, first weights and order.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Captured = Annotated[
    Path | None, typer.Option("--captured", help="Labelled captures: arrays x (N,16,16,1) float32 and y int64.")
]
Simulated = Annotated[
    str | None,
    typer.Option("--simulated", help="Without captures: film digits through a bad lens (blur, noise, contrast)."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, or cuda where torch has it.")]


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere in the call).")] = False,
) -> None:
    """Options that every verb knows."""


@app.command()
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
    with _progress("Training the host", quiet=as_json) as on_step:
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


@app.command()
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
    target = _target(captured, simulated, parts.camera, seed)
    with _progress(f"Growing {blueprint}", quiet=as_json) as on_step:
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


@app.command()
def export(
    out: Out = Path("build"),
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="What to export; the grown one in OUT, else the host."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the bundle.")] = "digits",
    version: Annotated[
        str | None, typer.Option("--version", help="Semantic version; 1.0.0 for a host, 1.1.0 when grown.")
    ] = None,
    profile: Annotated[str, typer.Option("--profile", help="Hardware target.")] = "coral",
    parent: Annotated[
        Path | None, typer.Option("--parent", help="The host's bundle, under grafts; the newest in OUT when left out.")
    ] = None,
    captured: Captured = None,
    simulated: Simulated = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Quantize to int8, prove TFLite and ONNX against torch, and sign OUT/NAME-VERSION.kasmina with the desk key."""
    from kasmina_trainer.checkpoints import load_checkpoint

    saved = load_checkpoint(checkpoint or _newest(out))
    under = _parent(parent, out, name) if saved.grafts else None
    version = version or ("1.1.0" if saved.grafts else "1.0.0")
    with _busy("Quantizing and checking against torch", quiet=as_json):
        bundle, path = _export(saved, out, name, version, profile, under, captured, simulated, seed)
    manifest = bundle.manifest
    rows = [("bundle", f"{manifest.id}, {len(manifest.grafts)} grafts, content {manifest.content_digest()[:12]}")]
    for model in manifest.models:
        assert model.parity is not None, "the trainer measures it"
        proof = f"top-1 agreement with torch {100 * model.parity.top1_agreement:.1f} % of {model.parity.samples}"
        rows.append((model.engine, f"{kilobytes(model.file.size_bytes)}, {proof}"))
    value = {"file": str(path), "digest": manifest.content_digest(), "manifest": manifest.model_dump(mode="json")}
    emit(value, as_json=as_json, table=rows_table([*rows, ("written", str(path))]))


@app.command()
def demo(
    out: Out = Path("build/demo"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show the whole loop with real processes: train, deploy, drift, grow, update, recover, roll back, remove."""
    from kasmina_trainer.demo.show import show

    show(out, seed=seed, as_json=as_json)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script.

    Returns:
        The exit code; see ``--help``.
    """
    return run_app(app, argv, program="kasmina-trainer")


def read_captured(path: Path) -> Samples:
    """Labelled captures as the controller writes them, as (N, C, H, W) and labels.

    Raises:
        InputError: Missing, not plain arrays, or of other shapes; the message carries what was found.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("x", "y") if name not in arrays]
            if missing:
                raise InputError(f"{path}: array {missing[0]} is missing, it holds {', '.join(arrays) or 'nothing'}")
            x, y = np.asarray(arrays["x"]), np.asarray(arrays["y"])
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such file", "Write it with `kasmina-edge fleet captures`.") from exc
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise InputError(f"{path}: not a file of plain arrays ({exc})") from exc
    shape = (digits.SIDE, digits.SIDE, 1)
    if x.shape[1:] != shape or y.shape != x.shape[:1] or x.dtype != np.float32 or y.dtype.kind not in "iu":
        raise InputError(
            f"{path}: expected x (N, {digits.SIDE}, {digits.SIDE}, 1) float32 and y (N,) integers, "
            f"got x {x.shape} {x.dtype} and y {y.shape} {y.dtype}"
        )
    if not np.isfinite(x).all():
        raise InputError(f"{path}: x holds {int((~np.isfinite(x)).sum())} values that are not numbers")
    if len(y) and (y.min() < 0 or y.max() >= len(digits.LABELS)):
        raise InputError(f"{path}: labels run from {y.min()} to {y.max()}, expected 0 to {len(digits.LABELS) - 1}")
    return digits.to_nchw(x), y.astype(np.int64)


def _target(captured: Path | None, simulated: str | None, camera: digits.Digits, seed: int) -> Samples:
    if (captured is None) == (simulated is None):
        raise InputError(
            "no labelled captures were named: grafts are grown, calibrated and exported with them",
            "Pass --captured FILE, or --simulated blur to try it (the same for evolve and export).",
        )
    if captured is not None:
        return read_captured(captured)
    from kasmina_trainer.datasets.corruptions import corrupt

    assert simulated is not None
    filmed = camera.take(slice(0, SIMULATED_SAMPLES))
    return corrupt(filmed.x, simulated, seed=seed), filmed.y


def _newest(out: Path) -> Path:
    return next((p for p in (out / GROWN_FILE, out / HOST_FILE) if p.is_file()), out / HOST_FILE)


def _parent(parent: Path | None, out: Path, name: str) -> Bundle:
    from kasmina_edge.bundle import read_file

    if parent is not None:
        return read_file(parent)
    hosts = [b for b in map(read_file, sorted(out.glob(f"{name}-*.kasmina"))) if not b.manifest.grafts]
    if not hosts:
        raise InputError(
            f"{out}: no bundle of the host below these grafts",
            f"Export the host first (kasmina-trainer export --checkpoint {out / HOST_FILE}), or pass --parent.",
        )
    return max(hosts, key=lambda bundle: bundle.manifest.version_key())


def _export(
    saved: Checkpoint,
    out: Path,
    name: str,
    version: str,
    profile: str,
    parent: Bundle | None,
    captured: Path | None,
    simulated: str | None,
    seed: int,
) -> tuple[Bundle, Path]:
    """Export, sign with the desk key, write."""
    import time

    from kasmina_edge.bundle import pack
    from kasmina_edge.fleet.repository import Repository
    from kasmina_edge.storage import make_private_folder, write_durable
    from kasmina_trainer.export.bundle import export_bundle

    parts = digits.split_digits(int(saved.metadata.get("seed", seed)))
    calibration, domains = parts.host.nhwc(), {"clean": parts.probes.nhwc()}
    frames = [(parts.check.nhwc(), parts.check.y), (parts.probes.nhwc(), parts.probes.y)]
    if saved.grafts:
        x, y = _target(captured, simulated, parts.camera, seed)
        aside = set_aside(x, seed=int(saved.metadata.get("growth_seed", seed)))
        x = digits.to_nhwc(x)
        calibration, domains["captured"] = np.concatenate([calibration, x[~aside]]), x[~aside]
        frames.append((x[aside], y[aside]))
    bundle = export_bundle(
        saved.network,
        name,
        version=version,
        profile=profile,
        calibration=calibration,
        held_out=(np.concatenate([x for x, _ in frames]), np.concatenate([y for _, y in frames])),
        labels=digits.LABELS,
        domains=domains,
        probes=(parts.probes.nhwc(), parts.probes.y),
        parent=parent,
        grafts=saved.grafts,
        acceptance=saved.acceptance,
        seed=seed,
    )
    signed = Repository.desk(clock=time.time).sign_bundle(bundle)
    path = out / f"{name}-{version}.kasmina"
    make_private_folder(out)
    write_durable(path, pack(signed))
    return signed, path


@contextmanager
def _progress(text: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar on stderr; nothing for machines."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, asked: bar.update(task, completed=done, total=asked)


@contextmanager
def _busy(text: str, *, quiet: bool) -> Iterator[None]:
    """A sign of life on stderr where there is nothing to count."""
    with _progress(text, quiet=quiet):
        yield
