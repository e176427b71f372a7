"""``optimize``: the recipe that gets the most out of a network on a target."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kasmina_edge.cli.output import console, emit, grid, plain, rows_table, size_text
from kasmina_trainer.cli import captured as captures
from kasmina_trainer.cli.options import Captured, Json, Seed, Simulated

if TYPE_CHECKING:
    from kasmina_trainer.optimize.optimizing import Optimizing
    from kasmina_trainer.optimize.outcome import Outcome


def optimize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .checkpoint, .pt2 or .onnx file.")],
    profile: Annotated[str, typer.Option("--profile", help="Hardware target.")] = "coral",
    data: Annotated[
        str | None,
        typer.Option("--data", help="npz with frames x and labels y, or a name of `data list`."),
    ] = None,
    max_loss: Annotated[float | None, typer.Option("--max-loss", help="Points of accuracy that may be lost.")] = None,
    max_ms: Annotated[float | None, typer.Option("--max-ms", help="Longest latency on the target.")] = None,
    max_kb: Annotated[float | None, typer.Option("--max-kb", help="Largest file.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for what is made.")] = Path("build/optimize"),
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder of what was made; OUT/candidates by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and what it costs, and stop.")] = False,
    captured: Captured = None,
    simulated: Simulated = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Make this recipe's file again instead of searching.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Most time; a candidate that began is finished.")
    ] = None,
    qat_steps: Annotated[int, typer.Option("--qat-steps", min=1, help="Steps of recipes that train.")] = 300,
    headroom: Annotated[
        float, typer.Option("--headroom", min=0, help="Room in the ranges for later grafts, as a share.")
    ] = 0.0,
    smoke: Annotated[bool, typer.Option(help="Run the whole path on a few rows first.")] = True,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Search the recipes - calibration, bias correction, equalisation, training, widths, pruning - for the best file.

    What was made is kept: a search that was interrupted goes on where it stopped, the next one makes only what is new.
    Exit code 1 when no recipe keeps the goals, or when the fresh inputs refute that the chosen one does; the page says
    how near they came.
    """
    from kasmina_edge.contracts.profile import load_profile
    from kasmina_edge.errors import InputError
    from kasmina_trainer.optimize.candidates import CandidateStore
    from kasmina_trainer.optimize.choosing import Goals
    from kasmina_trainer.optimize.optimizing import Optimizing, Settings, rerun
    from kasmina_trainer.optimize.outcome import write_outcome
    from kasmina_trainer.optimize.recipes import read_recipe
    from kasmina_trainer.optimize.tasks import read_task
    from kasmina_trainer.pruning import take_channels

    if minutes is not None and not minutes > 0:
        raise InputError(f"--minutes {minutes:g}: expected more than 0")
    goals = Goals(max_loss, max_ms, max_kb)
    target = load_profile(profile)
    made = None if recipe is None else read_recipe(recipe)
    named = captured is not None or simulated is not None
    task = read_task(model, data, seed, partial(captures.target, captured, simulated) if named else None)
    if made is not None:
        path = rerun(made, task, out, prune=take_channels)
        value = {"file": str(path), "sha256": made.file, "recipe": made.recipe.model_dump(mode="json")}
        emit(value, as_json=as_json, table=rows_table([("written", f"{path}, the same {made.file[:12]} as before")]))
        return
    err = console(stderr=True)
    searching = Optimizing(
        task, model.stem, target, goals,
        settings=Settings(qat_steps=qat_steps, headroom=headroom, seed=seed, minutes=minutes, smoke=smoke),
        store=CandidateStore(cache or out / "candidates"),
        prune=take_channels,
        said=lambda text: None if as_json else err.print(plain(text)),
    )  # fmt: skip
    if dry_run:
        _print_plan(searching, as_json=as_json)
        return
    outcome = searching.run()
    paths = write_outcome(outcome, out)
    value = outcome.as_dict() | {"files": {name: str(path) for name, path in paths.items()}}
    emit(value, as_json=as_json, table=_points(outcome))
    if not as_json:
        console().print(rows_table(_summary(outcome, paths)))
    if not outcome.keeps_goals:
        raise typer.Exit(1)


def _print_plan(searching: Optimizing, *, as_json: bool) -> None:
    plan = searching.plan()
    total = sum(p.seconds for p in plan if not p.kept)
    rows = [
        (p.offer.recipe.name, "kept" if p.kept else f"{p.seconds:.0f} s", p.offer.why,
         "if the goals are not kept without it" if p.offer.only_if else "")
        for p in plan
    ]  # fmt: skip
    value: dict[str, Any] = {
        "seconds": round(total, 1),
        "plan": [
            {"recipe": p.offer.recipe.model_dump(mode="json"), "why": p.offer.why, "only_if": p.offer.only_if,
             "seconds": round(p.seconds, 1), "kept": p.kept}
            for p in plan
        ],
    }  # fmt: skip
    title = f"{len(plan)} recipes for {searching.profile.name}, {total:.0f} s at most on this machine"
    emit(value, as_json=as_json, table=grid(title, ("recipe", "cost", "why", ""), rows))


def _points(outcome: Outcome) -> Any:
    from kasmina_trainer.optimize.outcome import latency_text

    verdict = outcome.found.verdict
    rows = [
        (
            "▸" if i == verdict.index else "", p.name, f"{p.loss.mean:.2f}", f"{p.loss.low:.2f} to {p.loss.high:.2f}",
            size_text(p.size_bytes), latency_text(p), "; ".join(verdict.misses[i]),
        )
        for i, p in enumerate(outcome.found.points)
    ]  # fmt: skip
    title = f"{outcome.name} for {outcome.profile.name}"
    return grid(title, ("", "recipe", "points lost", "95 % interval", "file", "latency", "misses"), rows)


def _summary(outcome: Outcome, paths: dict[str, Path]) -> list[tuple[str, str]]:
    found, rows = outcome.found, []
    if outcome.float_accuracy is not None:
        rows.append(("float", f"{outcome.float_accuracy:.2%} accurate"))
    for i, reason in enumerate(found.verdict.reasons):
        rows.append(("why" if i == 0 else "", reason))
    if outcome.confirmation:
        rows.append(("refuted" if outcome.refuted else "fresh inputs", outcome.confirmation))
    for tried in found.tried:
        if tried.candidate is None:
            rows.append(("not made", f"{tried.offer.recipe.name}: {tried.note}"))
    rows += [(name, str(path)) for name, path in paths.items()]
    return rows
