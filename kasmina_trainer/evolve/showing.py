"""Whether a growth shows itself: on a terminal, unless somebody else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kasmina_edge.cli.output import console
from kasmina_trainer.evolve.events import Listener
from kasmina_trainer.training import Progress

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def shown(
    blueprint: object, on_step: Progress | None, *, wanted: bool = True, on: Console | None = None
) -> Iterator[tuple[Progress | None, Listener | None]]:
    """A live table on stderr within the block, and who feeds it; it leaves nothing behind.

    Args:
        blueprint: What grows; a name is shown.
        on_step: Who counts the steps already; with somebody the terminal is theirs.
        wanted: False: nothing is shown.
        on: Where; stderr when left out. Files and pipes get nothing.

    Returns:
        ``on_step`` and a listener: those of the table, or the given one and None.
    """
    where = on if on is not None else console(stderr=True)
    if not wanted or on_step is not None or not where.is_interactive:
        yield on_step, None
        return
    from rich.live import Live

    from kasmina_trainer.evolve.live import LiveTable

    table = LiveTable(f"Growing {blueprint}" if isinstance(blueprint, str) else "Growing")
    with Live(table, console=where, transient=True, refresh_per_second=4):
        yield table.step, table
