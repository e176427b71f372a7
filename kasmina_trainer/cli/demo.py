"""``demo``: the whole loop with real processes."""

from __future__ import annotations

from pathlib import Path

from kasmina_trainer.cli.options import Json, Out, Seed


def demo(
    out: Out = Path("build/demo"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show the whole loop with real processes: train, deploy, drift, grow, update, recover, roll back, remove."""
    from kasmina_trainer.demo.show import show

    show(out, seed=seed, as_json=as_json)
