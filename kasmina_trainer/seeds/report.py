"""What stands at every site of a seeded network, as a table for a terminal, a notebook and a machine."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.seeds.lifecycle import Step

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = ("site", "state", "shape", "blueprint", "parameters", "MACs", "intensity", "age", "last step")


@dataclass(frozen=True)
class SeedRow:
    """One site.

    Attributes:
        site: Its name.
        state: ``dormant``, ``probing``, ``active`` or ``removed``.
        shape: What flows there, without the batch.
        layout: Which axis carries the channels.
        blueprint: Name and version of what grows there; "" where nothing does.
        config: Digest of its settings.
        parameters: Values that learn.
        macs: Multiply-adds of one frame.
        intensity: The gate's value, 0 to 1; None where nothing grows.
        age_s: Seconds since it was grown; None where that is not known.
        telemetry: Measured figures by name.
        reason: Of the last step.
        evidence: Figures that the last step rests on.
    """

    site: str
    state: str
    shape: tuple[int, ...]
    layout: str
    blueprint: str = ""
    config: str = ""
    parameters: int = 0
    macs: int = 0
    intensity: float | None = None
    age_s: float | None = None
    telemetry: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)

    def grown(self, **changes: Any) -> SeedRow:
        """The same site with something on it."""
        return replace(self, **changes)

    def cells(self) -> tuple[str, ...]:
        """As a line of the table."""
        return (
            self.site,
            self.state,
            " x ".join(str(n) for n in self.shape),
            self.blueprint,
            f"{self.parameters:,}" if self.blueprint else "",
            f"{self.macs:,}" if self.blueprint else "",
            "" if self.intensity is None else f"{self.intensity:g}",
            _spelled_age(self.age_s),
            self.reason,
        )


@dataclass(frozen=True)
class SeedReport:
    """All sites of one host."""

    host_hash: str
    rows: tuple[SeedRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        rows = [
            {**vars(row), "shape": list(row.shape), "telemetry": dict(row.telemetry), "evidence": dict(row.evidence)}
            for row in self.rows
        ]
        return {"host": self.host_hash, "sites": rows}

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, title=f"host {self.host_hash[:12]}", title_justify="left")
        for column in (*_COLUMNS, *self._measured()):
            table.add_column(column, justify="right" if column in _COLUMNS[4:8] else "left")
        for row in self.rows:
            table.add_row(*self._line(row))
        return table

    def __str__(self) -> str:
        lines = [(*_COLUMNS, *self._measured()), *(self._line(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in (*_COLUMNS, *self._measured()))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in self._line(row)) + "</tr>" for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"

    def _measured(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for row in self.rows for name in row.telemetry))

    def _line(self, row: SeedRow) -> tuple[str, ...]:
        figures = (row.telemetry.get(name) for name in self._measured())
        return (*row.cells(), *("" if value is None else f"{value:.3g}" for value in figures))


def row_of(port: Port, state: str, step: Step | None, telemetry: Mapping[str, float]) -> SeedRow:
    """The row of a bare site.

    Args:
        port: What flows there.
        state: Of its life.
        step: Its newest one.
        telemetry: Measured figures by name.
    """
    return SeedRow(
        site=port.name,
        state=str(state),
        shape=port.shape,
        layout=str(port.layout),
        telemetry=dict(telemetry),
        reason="" if step is None else step.reason,
        evidence={} if step is None else dict(step.evidence),
    )


def _spelled_age(age_s: float | None) -> str:
    if age_s is None:
        return ""
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if age_s >= seconds:
            return f"{age_s / seconds:.1f} {unit}"
    return f"{age_s:.0f} s"
