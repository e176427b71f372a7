"""What a growth did, as a table for a terminal, a notebook and a machine. Figures come in; nothing is measured here."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from kasmina_edge.contracts.manifest import Acceptance
from kasmina_trainer.training import TrainingRun


@dataclass(frozen=True)
class Row:
    """One network: accuracies in shares of 1, values added or changed; ``accepted`` is None for the host itself."""

    name: str
    clean: float
    target: float
    parameters: int
    accepted: bool | None


@dataclass(frozen=True)
class GrowthReport:
    """The host, what grew, and its rival, on the same held-out rows."""

    rows: tuple[Row, ...]
    acceptance: Acceptance
    run: TrainingRun

    def sentences(self) -> tuple[str, ...]:
        """The verdict and what it rests on."""
        a = self.acceptance
        verdict = "accepted" if a.accepted else "refused: " + "; ".join(a.reasons)
        stopped = f" (the budget ended it; {self.run.asked_steps} were asked for)" if self._cut_short() else ""
        return (
            f"{verdict}",
            f"gain {100 * (a.target_after - a.target_before):.1f} points (95 % bounds {100 * a.gain_low:.1f} to "
            f"{100 * a.gain_high:.1f}), clean loss at most {100 * a.clean_loss_high:.1f}, on {a.samples} held-out rows",
            f"{self.run.steps} steps{stopped} in {self.run.seconds:.1f} s",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "rows": [vars(row) for row in self.rows],
            "acceptance": self.acceptance.model_dump(mode="json"),
            "steps": self.run.steps,
            "asked_steps": self.run.asked_steps,
            "seconds": self.run.seconds,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, pad_edge=False)
        for column, side in (("", "left"), ("clean", "right"), ("captured", "right"), ("parameters", "right")):
            table.add_column(column, justify=side)  # type: ignore[arg-type]
        table.add_column("verdict")
        for cells in self._cells():
            table.add_row(*cells)
        yield table
        yield from self.sentences()

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("", "clean", "captured", "parameters", "verdict"))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>" for cells in self._cells()
        )
        notes = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences())
        return f"<table><tr>{head}</tr>{body}</table>{notes}"

    def _cells(self) -> list[tuple[str, str, str, str, str]]:
        words = {True: "accepted", False: "refused", None: ""}
        return [
            (r.name, f"{100 * r.clean:.1f} %", f"{100 * r.target:.1f} %", str(r.parameters or ""), words[r.accepted])
            for r in self.rows
        ]

    def _cut_short(self) -> bool:
        return self.run.steps < self.run.asked_steps
