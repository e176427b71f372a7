"""The program ``kasmina-edge`` put together from its verbs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kasmina_edge import __version__
from kasmina_edge.cli import audit, bundle, device, fleet, profile, service
from kasmina_edge.cli.output import EXIT_CODES

app = typer.Typer(
    name="kasmina-edge",
    help="Run neural networks on the device, and take signed updates that can be taken back.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
device.register(app)
app.add_typer(bundle.app, name="bundle")
app.add_typer(profile.app, name="profile")
app.add_typer(audit.app, name="audit")
app.add_typer(service.app, name="service")
app.add_typer(fleet.app, name="fleet")
fleet.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"kasmina-edge {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere in the call).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that every verb knows."""
