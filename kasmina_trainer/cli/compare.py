"""``compare``: where two forms of a network part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kasmina_edge.cli.output import console, emit, grid, rows_table
from kasmina_trainer.cli.options import Json
from kasmina_trainer.cli.progress import busy

if TYPE_CHECKING:
    from kasmina_trainer.optimize.comparison import Comparison

_SHOWN = 12


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="[ENGINE:]FILE that is held to be right.")],
    second: Annotated[str, typer.Argument(metavar="B", help="[ENGINE:]FILE that is doubted.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="npz with frames x and labels y; a bundle's reference probes when left out."),
    ] = None,
    frames: Annotated[int, typer.Option("--frames", min=1, max=1000, help="Frames that are looked into.")] = 16,
    every: Annotated[bool, typer.Option("--all", help="List every step, not only those that err most.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 when they part.")] = False,
    as_json: Json = False,
) -> None:
    """Run two forms of a model on the same data, name the first step where they part, and say what to try.

    A form is a .checkpoint, .pt2, .tflite, .onnx or .kasmina file, with an engine before it where there is a choice:
    litert, litert-plain, litert-reference or onnxruntime, e.g. litert-reference:model.tflite.
    """
    from kasmina_trainer.optimize.comparison import compare as run
    from kasmina_trainer.optimize.opening import frames_for, open_form, parse_named

    named = (parse_named(first), parse_named(second))
    asked = frames_for(named, data)
    with busy("Running both", quiet=as_json):
        forms = [open_form(one, asked) for one in named]
        found = run(forms[0], forms[1], asked.inputs, asked.labels, most_frames=frames)
    if as_json:
        emit({**found.as_dict(), "data": asked.source}, as_json=True)
    else:
        _print(found, asked.source, every=every)
    if check and found.culprits:
        raise typer.Exit(1)


def _print(found: Comparison, source: str, *, every: bool) -> None:
    answers = found.answers
    rows = [("right", found.ours), ("doubted", found.theirs), ("data", f"{answers.frames} frames, {source}")]
    told = f"{answers.sqnr_db:.1f} dB signal to error, largest difference {answers.largest:.4g}"
    if answers.agreement is not None:
        told += f", {answers.agreement:.1%} equal top answers"
    if answers.accuracy is not None:
        told += f", accuracy {answers.accuracy[0]:.1%} and {answers.accuracy[1]:.1%}"
    rows.append(("answers", "the same" if answers.largest == 0 else told))
    rows.append(("verdict", found.verdict()))
    for culprit in found.culprits:
        rows.append(("culprit", f"{culprit.place}: {culprit.cause.word}"))
        if culprit.source:
            rows.append(("", culprit.source))
        rows.append(("", culprit.cause.sentence))
        rows.append(("try", culprit.cause.advice))
    rows.extend(("note", note) for note in found.notes)
    console().print(rows_table(rows))
    if not found.identical:
        console().print()
        console().print(_steps(found, every=every))


def _steps(found: Comparison, *, every: bool) -> object:
    from kasmina_trainer.optimize.comparison import layer_of, place_of

    looks = list(found.looks)
    if not every and len(looks) > _SHOWN:
        largest = sorted(range(len(looks)), key=lambda i: (not looks[i].named, -looks[i].answers_share, i))
        looks = [looks[i] for i in sorted(largest[:_SHOWN])]
    cells = [
        (
            "▸" if x.named else "", place_of(x.pair), layer_of(x.pair), f"{x.total_db:.1f}", f"{x.own_db:.1f}",
            f"{x.excess_db:+.1f}" if x.own_error > 0 else "", f"{x.answers_db:.1f}" if x.own_error > 0 else "",
        )
        for x in looks
    ]  # fmt: skip
    title = f"{len(looks)} of {len(found.looks)} steps" if len(looks) < len(found.looks) else "Every step"
    columns = ("", "step", "layer", "SQNR dB", "its own dB", "beyond rounding dB", "answers dB, it alone")
    return grid(title, columns, cells)
