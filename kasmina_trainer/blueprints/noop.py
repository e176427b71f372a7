"""No-Op: grow nothing. The rival that every other blueprint has to beat, and the control of every measurement."""

from __future__ import annotations

from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint


@blueprint("no-op", version=1)
class NoOp(GraftBlueprint):
    """Adds no module and no parameter; the site is taken, the outputs are the host's bit for bit."""

    summary = "takes the site and adds nothing: the control"
    ranks = frozenset({1, 2, 3})

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module | None:
        return None

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        return Cost()
