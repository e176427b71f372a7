"""The program ``kasmina-trainer`` put together from its verbs: a line a family, in the order of ``--help``."""

from __future__ import annotations

from typing import Annotated

import typer

from kasmina_edge.cli.output import EXIT_CODES
from kasmina_trainer.cli import blueprints, compare, data, demo, evolve, export, optimize, plot, train

app = typer.Typer(
    name="kasmina-trainer",
    help="Train a host, grow it where it is weak, and export what a device can read.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("train")(train.train)
app.command("evolve")(evolve.evolve)
app.command("blueprints")(blueprints.blueprints)
app.command("export")(export.export)
app.command("compare")(compare.compare)
app.command("optimize")(optimize.optimize)
app.command("plot")(plot.plot)
app.command("demo")(demo.demo)
app.add_typer(data.data, name="data")


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere in the call).")] = False,
) -> None:
    """Options that every verb knows."""
