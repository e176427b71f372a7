"""``make bench``: collect `rows()` of every module of this folder, print one table, write build/bench.json.

A module measures one thing and offers ``rows()``, or ``rows(quick: bool)`` when it can do with fewer samples. A row is
a mapping with exactly the keys of `KEYS`. Rows of a module that ran in full are kept for docs/benchmarks.md, which a
run of all modules writes, and ``--page`` from what is kept. The exit code is 1 when a target was missed or a module
failed.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._page import Result, begun, keep, kept, number, page

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("name", "target", "measured", "unit", "ok", "how")
PAGE = ROOT / "docs/benchmarks.md"
Row = dict[str, Any]


def module_names() -> list[str]:
    """Every module of this folder that measures something."""
    found = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if name != "run" and not name.startswith("_"))


def checked(row: object, module: str) -> Row:
    """A row as plain data.

    Raises:
        ValueError: Keys or types are not those of a row.
    """
    value = asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
    if not isinstance(value, Mapping) or set(value) != set(KEYS):
        got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"benchmarks/{module}.py: a row has the keys {', '.join(KEYS)}; got {got}")
    plain = {key: value[key].item() if hasattr(value[key], "item") else value[key] for key in KEYS}
    if not isinstance(plain["ok"], bool) or not isinstance(plain["name"], str) or not isinstance(plain["how"], str):
        raise ValueError(f"benchmarks/{module}.py: {plain['name']}: ok is a bool, name and how are text")
    return plain


def measure(module: str, *, quick: bool) -> list[Row]:
    """Run one module."""
    rows: Callable[..., Iterable[object]] = importlib.import_module(f"benchmarks.{module}").rows
    takes_quick = "quick" in inspect.signature(rows).parameters
    return [checked(row, module) for row in (rows(quick=quick) if takes_quick else rows())]


def table(rows: Sequence[Row]) -> Table:
    """The table that a terminal shows."""
    out = Table(box=None, pad_edge=False)
    for title, justify in (("name", "left"), ("target", "right"), ("measured", "right"), ("", "left"), ("", "left")):
        out.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        mark = "[red]missed[/]" if not row["ok"] else "[green]ok[/]" if row["target"] is not None else "stated"
        out.add_row(row["name"], number(row["target"]), number(row["measured"]), row["unit"], mark)
    return out


def _write_page(results: Sequence[Result], names: Sequence[str]) -> None:
    PAGE.write_text(page(results, names, PAGE.read_text() if PAGE.is_file() else ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measured figures against their targets.")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="some modules: " + ", ".join(module_names()))
    parser.add_argument("--quick", action="store_true", help="fewer samples where a module offers it")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write docs/benchmarks.md from what is kept"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench.json")
    chosen = parser.parse_args(arguments)
    names, folder = module_names(), chosen.out.parent / "bench/rows"
    if chosen.page:
        _write_page(kept(folder, names), names)
        return 0
    if unknown := sorted(set(chosen.only or ()) - set(names)):
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(names) or 'none'}")
    asked = chosen.only or names
    out, progress = Console(), Console(stderr=True)
    rows: list[Row] = []
    failed: list[str] = []
    for i, name in enumerate(asked, 1):
        with progress.status(f"{name} ({i} of {len(asked)})"):
            (day, load), started = begun(), time.monotonic()
            try:
                found = measure(name, quick=chosen.quick)
            except Exception as exc:  # one broken module must not hide the others' figures
                failed.append(f"{name}: {type(exc).__name__}: {exc}")
                continue
        rows += found
        if not chosen.quick:
            keep(folder, Result(name, found, time.monotonic() - started, day, load))
    out.print(table(rows))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
    for line in failed:
        progress.print(f"[red]failed[/] {line}")
    if rows and not (failed or chosen.only or chosen.quick):
        _write_page(kept(folder, names), names)
    return 1 if failed or not rows or not all(row["ok"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
