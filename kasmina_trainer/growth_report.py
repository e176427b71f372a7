"""What a growth did, as a table for a terminal, a notebook and a machine. Figures come in; nothing is measured here."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from kasmina_edge.contracts.manifest import Acceptance
from kasmina_trainer.training import TrainingRun

_COLUMNS = ("", "clean", "captured", "gain", "parameters", "s", "MB", "verdict")


@dataclass(frozen=True)
class Row:
    """One network: accuracies in shares of 1, values added or changed; ``accepted`` is None for the host itself.

    ``gain_low`` and ``gain_high`` bound the gain on the target; ``seconds`` and ``peak_bytes`` are what learning took
    (see `TrainingRun.peak_bytes`).
    """

    name: str
    clean: float
    target: float
    parameters: int
    accepted: bool | None
    gain_low: float | None = None
    gain_high: float | None = None
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Trial:
    """One candidate in one round of a race: steps it learned for, what it was worth, and its price."""

    name: str
    rung: int
    steps: int
    score: float
    parameters: int
    kept: bool


@dataclass(frozen=True)
class GrowthReport:
    """The host, what grew, and its rivals, on the same held-out rows; the race that chose it, and notes."""

    rows: tuple[Row, ...]
    acceptance: Acceptance
    run: TrainingRun
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()

    def sentences(self) -> tuple[str, ...]:
        """The verdict and what it rests on."""
        a = self.acceptance
        verdict = "accepted" if a.accepted else "refused: " + "; ".join(a.reasons)
        stopped = f" (the budget ended it; {self.run.asked_steps} were asked for)" if self._cut_short() else ""
        worst = a.worst_class_loss_high
        by_class = "" if worst is None else f" (of the class that loses most: {100 * worst:.1f})"
        return (
            f"{verdict}",
            f"gain {100 * (a.target_after - a.target_before):.1f} points (95 % bounds {100 * a.gain_low:.1f} to "
            f"{100 * a.gain_high:.1f}), clean loss at most {100 * a.clean_loss_high:.1f}{by_class}, "
            f"on {a.samples} held-out rows",
            f"{self.run.steps} steps{stopped} in {self.run.seconds:.1f} s",
            *self._race_sentence(),
            *self.notes,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "rows": [vars(row) for row in self.rows],
            "acceptance": self.acceptance.model_dump(mode="json"),
            "steps": self.run.steps,
            "asked_steps": self.run.asked_steps,
            "seconds": self.run.seconds,
            "peak_bytes": self.run.peak_bytes,
            "trials": [vars(trial) for trial in self.trials],
            "notes": list(self.notes),
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, pad_edge=False)
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column in ("", "verdict") else "right")
        for cells in self._cells():
            table.add_row(*cells)
        yield table
        yield from self.sentences()

    def __str__(self) -> str:
        lines = [_COLUMNS, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if name in ("", "verdict") else cell.rjust(width)
                for name, cell, width in zip(_COLUMNS, cells, widths, strict=True)
            ).rstrip()
            for cells in lines
        ]
        return "\n".join([*table, *self.sentences()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>" for cells in self._cells()
        )
        notes = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences())
        return f"<table><tr>{head}</tr>{body}</table>{notes}"

    def _cells(self) -> list[tuple[str, ...]]:
        words = {True: "accepted", False: "refused", None: ""}
        return [
            (
                r.name,
                f"{100 * r.clean:.1f} %",
                f"{100 * r.target:.1f} %",
                _bounds(r),
                str(r.parameters or ""),
                f"{r.seconds:.1f}" if r.seconds else "",
                f"{r.peak_bytes / 1e6:.1f}" if r.peak_bytes else "",
                words[r.accepted],
            )
            for r in self.rows
        ]

    def _race_sentence(self) -> tuple[str, ...]:
        if not self.trials:
            return ()
        rounds, names = len({t.rung for t in self.trials}), len({t.name for t in self.trials})
        return (f"chosen in a race of {names} candidates over {rounds} rounds",)

    def _cut_short(self) -> bool:
        return self.run.steps < self.run.asked_steps


def _bounds(row: Row) -> str:
    if row.gain_low is None or row.gain_high is None:
        return ""
    return f"{100 * row.gain_low:+.1f} to {100 * row.gain_high:+.1f}"
