"""docs/benchmarks.md: the last full result of every module, each with the command, the day and the load that it had.

A module's rows are kept in build/bench/rows/ when it ran in full, so that a page can be made of runs that each had the
machine to themselves. What was not run on this checkout stays as the page had it, with its day; what the page never had
is named, not left out in silence.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("numpy", "ai-edge-litert", "onnxruntime", "torch", "tuf", "paho-mqtt", "zstandard")
BUSY = 0.25
"""Busy cores in the moment before, from which a run is said to have had company."""
HEADING = "## `make bench only="
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One full run of one module.

    Attributes:
        module: Its name.
        rows: What it measured.
        seconds: How long it took.
        day: When, ISO 8601, UTC.
        load: Cores that were busy in the second before it began.
    """

    module: str
    rows: Sequence[Row]
    seconds: float
    day: str
    load: float


def begun(wait_s: float = 1.0) -> tuple[str, float]:
    """Day and load, to be asked for before a module runs."""
    before = _busy_s()
    time.sleep(wait_s)
    return datetime.now(UTC).date().isoformat(), (_busy_s() - before) / wait_s


def keep(folder: Path, result: Result) -> None:
    """Put a result in the place of the module's last one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.module}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")


def kept(folder: Path, modules: Iterable[str]) -> list[Result]:
    """What is kept, in the order of ``modules``."""
    paths = [folder / f"{name}.json" for name in modules]
    return [Result(**json.loads(path.read_text())) for path in paths if path.is_file()]


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


def page(results: Sequence[Result], modules: Sequence[str], before: str = "") -> str:
    """The whole page.

    Args:
        results: One a module.
        modules: All there are.
        before: The page as it is; its sections stay where nothing newer is known.
    """
    sections = _sections(before) | {result.module: _section(result) for result in results}
    told = [sections[name] for name in modules if name in sections]
    missed = [line.split(" | ")[0].removeprefix("| ") for lines in told for line in lines if " | **no** | " in line]
    absent = [f"`{name}`" for name in modules if name not in sections]
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (benchmarks/run.py) from the last full run of each module. Do not edit it.",
        "Ratios have both sides measured in the same run. Times on a shared machine are noisy; bytes are exact.",
        "",
        *(f"- {key}: {value}" for key, value in machine()),
        f"- targets missed: {'; '.join(missed) or 'none'}",
        *([f"- not run here: {', '.join(absent)}"] if absent else []),
        "",
    ]
    for section in told:
        lines += section
    return "\n".join(lines)


def _sections(text: str) -> dict[str, list[str]]:
    """Sections of a page by module, each with an empty last line."""
    parts = text.split(f"\n{HEADING}")[1:]
    return {part.split("`", 1)[0]: [*f"{HEADING}{part}".rstrip("\n").split("\n"), ""] for part in parts}


def _busy_s() -> float:
    """Processor time that anybody has used so far; 0 where the system does not tell."""
    try:
        user, nice, system, *_ = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
    except (OSError, ValueError):
        return 0.0
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _section(result: Result) -> list[str]:
    beside = (
        "alone on the machine" if result.load < BUSY else f"beside other work ({result.load:.1f} cores busy before it)"
    )
    lines = [
        f"{HEADING}{result.module}`",
        "",
        f"{result.day}, {result.seconds:.0f} s, {beside}.",
        "",
        "| name | target | measured | unit | ok | how |",
        "|---|---:|---:|---|---|---|",
    ]
    return [*lines, *(_line(row) for row in result.rows), ""]


def _line(row: Mapping[str, Any]) -> str:
    cells = (row["name"], number(row["target"]), number(row["measured"]), row["unit"])
    how = row["how"].replace("|", "\\|")
    ok = "stated" if row["target"] is None else "yes" if row["ok"] else "**no**"
    return f"| {' | '.join(map(str, cells))} | {ok} | {how} |"
