"""No-Op: grow nothing. The rival that every other blueprint has to beat, and the control of every measurement."""

from __future__ import annotations

from torch import nn

from kasmina_trainer.blueprints.registry import GraftBlueprint, Shape, register


class NoOp(GraftBlueprint):
    """Adds no module and no parameter; the site is taken, the outputs are the host's bit for bit."""

    name = "no-op"
    version = 1

    def _build(self, shape: Shape) -> nn.Module | None:
        return None


register(NoOp())
