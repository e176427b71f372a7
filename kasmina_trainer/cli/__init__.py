"""``kasmina-trainer``: train a host, grow it from captured samples, export it, and show the whole loop.

One file per family of verbs; torch is imported inside the verbs that need it, so ``--help`` never waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The console script.

    Returns:
        The exit code; see ``--help``.
    """
    from kasmina_edge.cli.output import run_app
    from kasmina_trainer.cli.app import app

    return run_app(app, argv, program="kasmina-trainer")
