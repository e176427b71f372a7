"""Progress on stderr: a bar where there is something to count, a sign of life elsewhere; nothing for machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kasmina_edge.cli.output import console

if TYPE_CHECKING:
    from kasmina_trainer.training import Progress


@contextmanager
def progress(text: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar on stderr; nothing for machines, and nothing into a file or a pipe, where it would leave an empty line."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    err = console(stderr=True)
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_interactive) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, asked: bar.update(task, completed=done, total=asked)


@contextmanager
def busy(text: str, *, quiet: bool) -> Iterator[None]:
    """A sign of life on stderr where there is nothing to count."""
    with progress(text, quiet=quiet):
        yield
