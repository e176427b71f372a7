"""A growth as it runs, for a terminal: a bar over all steps and a table of what was measured so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from kasmina_trainer.evolve.events import Event

MOST_ROWS = 10


@dataclass
class _Line:
    name: str
    parameters: float | None = None
    steps: int = 0
    loss: float | None = None
    score: float | None = None
    told: str = ""


@dataclass
class LiveTable:
    """A listener that a terminal can show; pass it to `rich.live.Live`.

    >>> table = LiveTable()
    >>> table(Event("arm", "se@s1", 20, {"score": 0.12, "parameters": 90}))
    >>> [line.name for line in table.lines()]
    ['se@s1']
    """

    phase: str = ""
    _lines: dict[str, _Line] = field(default_factory=dict)
    _bar: Progress = field(
        default_factory=lambda: Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    )
    _task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Hear an event."""
        values = event.values
        if event.kind == "phase":
            self.phase = event.name
            return
        if event.kind == "rung":
            self.phase = f"{event.name}: {values.get('arms', 0):.0f} candidates, best {100 * values['score']:+.1f}"
            return
        line = self._lines.setdefault(event.name, _Line(event.name))
        line.steps = event.step
        line.loss = values.get("loss", line.loss)
        line.parameters = values.get("parameters", line.parameters)
        if event.kind == "arm":
            line.score, line.told = values["score"], f"{100 * values['score']:+.1f} points"
        if event.kind == "verdict":
            line.told = f"captured {100 * values['target']:.1f} %, clean {100 * values['clean']:.1f} %"

    def step(self, done: int, asked: int) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._bar.add_task("", total=asked)
        self._bar.update(self._task, completed=done, total=asked, description=self.phase)

    def lines(self) -> list[_Line]:
        """What is shown: the running ones last, before them the best."""
        measured = [line for line in self._lines.values() if line.told]
        best = sorted(measured, key=lambda line: -(line.score if line.score is not None else 9.0))
        running = [line for line in self._lines.values() if not line.told][-1:]
        return [*best[: MOST_ROWS - len(running)], *running]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, pad_edge=False)
        for column in ("growth", "parameters", "steps", "loss", "measured"):
            table.add_column(column, justify="left" if column in ("growth", "measured") else "right", no_wrap=True)
        for line in self.lines():
            table.add_row(
                line.name,
                "" if line.parameters is None else f"{line.parameters:.0f}",
                str(line.steps),
                "" if line.loss is None else f"{line.loss:.3f}",
                line.told,
            )
        yield Group(table, self._bar)
