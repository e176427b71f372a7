"""``kasmina-edge``: deploy, run and watch bundles; sign and publish them for a fleet."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The console script.

    Returns:
        The exit code; see ``--help``.
    """
    from kasmina_edge.cli.agent_process import light_main

    done = light_main(argv)
    if done is not None:
        return done
    from kasmina_edge.cli.app import app
    from kasmina_edge.cli.output import run_app

    return run_app(app, argv, program="kasmina-edge")
