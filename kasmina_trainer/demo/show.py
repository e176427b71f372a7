"""The demo in a terminal: a live line for each step, the closing table, and where the page lies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kasmina_edge.cli.output import console, emit
from kasmina_edge.storage import write_durable
from kasmina_trainer.demo import report
from kasmina_trainer.demo.findings import Step


def show(out: Path, *, seed: int = 0, as_json: bool = False) -> None:
    """Run the story and print what it found; leaves ``report.html`` and ``findings.json`` in ``out``."""
    from kasmina_trainer.demo.story import Story

    err = console(stderr=True)
    with StepLines(err, quiet=as_json) as lines:
        found = Story(out, seed=seed, progress=lines.progress, finished=lines.finished).run()
    page = out / "report.html"
    write_durable(page, report.page(found).encode(), mode=0o644)
    write_durable(out / "table.md", report.markdown(found).encode(), mode=0o644)
    if not as_json:
        console().print()
    emit(json.loads((out / "findings.json").read_bytes()), as_json=as_json, table=report.table(found))
    err.print(
        f"\n{found.facts['seconds']:.0f} s. The page: {page}   Deploy it here: "
        f"{Path(sys.executable).parent / 'kasmina-edge'} deploy --profile coral"
    )


class StepLines:
    """One bar for the step that runs, one line for each that ended; plain lines where there is no terminal."""

    def __init__(self, err: Any, *, quiet: bool) -> None:
        self._err = err
        self._quiet = quiet
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        self._bar = Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)
        self._task = self._bar.add_task("", total=None)
        self._name = ""

    def progress(self, text: str, share: float | None) -> None:
        """A step begins (share None), or is so far along (0 to 1)."""
        if share is None:
            self._name = text
            self._bar.reset(self._task, description=text, total=None)
        else:
            self._bar.update(self._task, description=text or self._name, completed=100 * share, total=100)

    def finished(self, step: Step) -> None:
        """A step ended."""
        if not self._quiet:
            self._err.print(f"[green]✓[/] {step.seconds:5.1f} s  {step.name}\n           [dim]{step.note}[/]")

    def __enter__(self) -> StepLines:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()
