"""``make bench``: collect `rows()` of every module of this folder, print one table, write build/bench.json.

A module measures one thing and offers ``rows()``, or ``rows(quick: bool)`` when it can do with fewer samples. A row is
a mapping with exactly the keys of `KEYS`. A full run also writes docs/benchmarks.md. The exit code is 1 when a target
was missed or a module failed.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("name", "target", "measured", "unit", "ok", "how")
LIBRARIES = ("numpy", "ai-edge-litert", "onnxruntime", "torch", "tuf", "paho-mqtt", "zstandard")
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


def machine() -> list[tuple[str, str]]:
    """What the figures were measured on, without anything that names one computer."""
    cpu = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return [
        ("CPU", f"{cpu}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}"),
        ("memory", f"{memory:.0f} GiB"),
        ("system", f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}"),
        ("libraries", ", ".join(f"{name} {found}" for name in LIBRARIES if (found := installed(name)))),
    ]


def installed(name: str) -> str:
    """The version of a distribution, or nothing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def number(value: object) -> str:
    """A figure as people read it; a row without a target is only stated."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(rows: Sequence[Row]) -> Table:
    """The table that a terminal shows."""
    out = Table(box=None, pad_edge=False)
    for title, justify in (("name", "left"), ("target", "right"), ("measured", "right"), ("", "left"), ("", "left")):
        out.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        mark = "[red]missed[/]" if not row["ok"] else "[green]ok[/]" if row["target"] is not None else "stated"
        out.add_row(row["name"], number(row["target"]), number(row["measured"]), row["unit"], mark)
    return out


def document(rows: Sequence[Row], seconds: float) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` (benchmarks/run.py); the run took {seconds:.0f} s. Do not edit it.",
        "Ratios have both sides measured in the same run. Times on a shared machine are noisy; bytes are exact.",
        "",
        *(f"- {key}: {value}" for key, value in machine()),
        "",
        "| name | target | measured | unit | ok | how |",
        "|---|---:|---:|---|---|---|",
    ]
    for row in rows:
        cells = (row["name"], number(row["target"]), number(row["measured"]), row["unit"])
        how = row["how"].replace("|", "\\|")
        lines.append(f"| {' | '.join(map(str, cells))} | {'yes' if row['ok'] else '**no**'} | {how} |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measured figures against their targets.")
    parser.add_argument("--only", metavar="NAME", help="one module: " + ", ".join(module_names()))
    parser.add_argument("--quick", action="store_true", help="fewer samples where a module offers it")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench.json")
    chosen = parser.parse_args(arguments)
    names = module_names()
    if chosen.only:
        if chosen.only not in names:
            parser.error(f"no benchmark is called {chosen.only!r}; there are {', '.join(names) or 'none'}")
        names = [chosen.only]
    out, progress = Console(), Console(stderr=True)
    rows: list[Row] = []
    failed: list[str] = []
    started = time.monotonic()
    for i, name in enumerate(names, 1):
        with progress.status(f"{name} ({i} of {len(names)})"):
            try:
                rows += measure(name, quick=chosen.quick)
            except Exception as exc:  # one broken module must not hide the others' figures
                failed.append(f"{name}: {type(exc).__name__}: {exc}")
    out.print(table(rows))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
    for line in failed:
        progress.print(f"[red]failed[/] {line}")
    if rows and not (failed or chosen.only or chosen.quick):
        (ROOT / "docs/benchmarks.md").write_text(document(rows, time.monotonic() - started))
    return 1 if failed or not rows or not all(row["ok"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
