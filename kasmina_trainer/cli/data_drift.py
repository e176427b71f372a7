"""``data drift``: a stream of drifting blobs, a model that does not learn, the early warning, and a film of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from kasmina_edge.cli.output import emit, rows_table
from kasmina_edge.errors import InputError
from kasmina_edge.storage import write_durable
from kasmina_trainer.cli.options import Json
from kasmina_trainer.cli.progress import busy
from kasmina_trainer.datasets.gaussian import DriftingBlobs, DriftWarning, Schedule, blob_splits, make_blobs, moved
from kasmina_trainer.datasets.gaussian.drifting import KINDS, Kind
from kasmina_trainer.pages.drift_film import Frame, film

FRAMES = 40
MOST_DISTANCE = 100.0


def drift_film(
    out: Annotated[Path, typer.Argument(metavar="FILE.html", help="Where the film goes.")],
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(KINDS)}.")] = "incremental",
    blobs: Annotated[int, typer.Option(min=2, max=8, help="How many, in the plane.")] = 3,
    overlap: Annotated[float, typer.Option(help="Share that the best classifier gets wrong.")] = 0.05,
    distance: Annotated[float, typer.Option(help="How far each blob moves, in its standard deviations.")] = 2.0,
    samples: Annotated[int, typer.Option(min=2000, max=200_000, help="Length of the stream.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of blobs, ways and points.")] = 0,
    as_json: Json = False,
) -> None:
    """Watch clusters drift: an animated page with points, accuracy and alarms; no script, no network."""
    if kind not in KINDS:
        raise InputError(f"--kind {kind}: expected one of {', '.join(KINDS)}")
    if not 0 <= distance <= MOST_DISTANCE:
        raise InputError(f"--distance {distance:g}: expected 0 to {MOST_DISTANCE:g} standard deviations")
    begin = samples // 5
    known: Kind = next(k for k in KINDS if k == kind)
    with busy(f"Watching {samples:,} samples", quiet=as_json):
        before = make_blobs(seed, blobs=blobs, overlap=overlap)
        schedule = Schedule(known, begin, max(1, samples * 3 // 5))
        drifting = DriftingBlobs(before, moved(before, distance, seed), schedule)
        stream = drifting.whole(samples, seed)
        answers = before.best(stream.x)
        reference = blob_splits(before, seed + 1).train[0]
        alarms = DriftWarning(reference, before.best(reference)).update(stream.x, answers)
        frames = []
        for rows in np.array_split(np.arange(samples), FRAMES):
            right = answers[rows] == stream.y[rows]
            frames.append(
                Frame(
                    int(rows[0]),
                    stream.x[rows],
                    answers[rows],
                    right,
                    float(right.mean()),
                    float(stream.share[rows[0]]),
                )
            )
        page = film(
            frames,
            [(a.sample, str(a).partition(": ")[2]) for a in alarms],
            title=f"{kind.capitalize()} drift of {blobs} blobs",
            lead=f"Blobs overlap by {overlap:g}; each moves {distance:g} standard deviations; seed {seed}. "
            "The model is the best there is for the first blobs.",
            begin=begin,
        )
    write_durable(out, page.encode(), mode=0o644)
    late = [a for a in alarms if a.sample >= begin]
    told = {
        "page": str(out),
        "begin": begin,
        "first_alarm": late[0].sample if late else None,
        "false_alarms": len(alarms) - len(late),
        "accuracy_first": frames[0].accuracy,
        "accuracy_last": frames[-1].accuracy,
    }
    said = f"{late[0]}, {late[0].sample - begin:,} samples after the change began" if late else "none"
    emit(
        told,
        as_json=as_json,
        table=rows_table(
            [
                ("page", str(out)),
                ("first alarm", said),
                ("false alarms", str(told["false_alarms"])),
                ("accuracy", f"{frames[0].accuracy:.1%} at first, {frames[-1].accuracy:.1%} in the end"),
            ]
        ),
    )
