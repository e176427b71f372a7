"""The program ``kasmina-edge`` put together from its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from kasmina_edge.cli import bundle, device, fleet
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
app.add_typer(bundle.profile_app, name="profile")
app.add_typer(bundle.audit_app, name="audit")
app.add_typer(fleet.app, name="fleet")
fleet.register(app)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere in the call).")] = False,
) -> None:
    """Options that every verb knows."""
